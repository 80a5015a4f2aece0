"""`sa-eval coverage`: its flags, what it prints, and what resume and report do with its results.

Heavy imports wait inside functions, so that --help and bad arguments answer at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sa_eval.commands.flags import add_flag, modes_text
from sa_eval.commands.parser import Parser
from sa_eval.coverage.settings import DEFAULTS, CoverageSettings, coverage_settings, shared
from sa_eval.processes import interrupts
from sa_eval.progress import Progress
from sa_eval.settings.config import known_settings
from sa_eval.settings.setting import settings_of
from sa_eval.settings.values import SettingsError

if TYPE_CHECKING:
    from sa_eval.coverage.types import CoverageResult
    from sa_eval.records.directory import RunDirectory
    from sa_eval.records.types import Facts

HELP = "what layers connect: coverage over depth, theory over simulation, local coherence; no model needed"
DESCRIPTION = """\
Which share of all (query, earlier token) pairs do 1, 2, 3, ... sparse layers connect? Followed exactly through the
patterns that the kernels execute, for any window, length, depth and options, beside the closed forms. No model needed.
"""
EXAMPLES = """\
examples
  sa-eval coverage                                          swa, sa and sa+swa, three windows, two lengths: a minute
  sa-eval coverage --modes sa,sa-circular,sa-bucket,sa-dyadic --window 32,64 --lengths 2048 --layers 16
  sa-eval coverage --modes sa --window 64,128,256,512 --lengths 131072 --directions causal    minutes: no n x n matrix
  sa-eval coverage --modes sa --sinks 0,4 --local 0,16 --dense-layers none/0 --window 64      what options are worth
  sa-eval coverage --plan plans/mine --lengths 8192         a plan from `sa-eval calibrate`
"""
DETAILS = """\
how it is done
  A token's content is followed from layer to layer: who sees it, who sees those, and so on, as sets of tokens. Up to
  2,048 tokens every token is followed and every pair is counted; beyond, 64 tokens per seed (--sources), drawn by a
  hash so that every pair is as likely as any other, each followed exactly. Intervals are Student's over seeds (95 %).
  Modes that choose keys by content (moba, routed) have no coverage without a prompt: sa_patch.analysis.prompt_coverage
  measures it while a patched model reads one.

how to read it
  Connected is an upper bound: content can have got there; whether a model makes it get there is another question
  (`sa-eval fidelity`, `sa-eval run`). Look at the distances picture: what a random order leaves out is what is near.

what comes out (in --out, default runs/<time>-coverage-layers)
  tables here; coverage.json (every curve, seed and interval); figures/ (PNG and SVG: theory over measurement with error
  bars, several windows in one panel; coverage by distance)

what is lost when it stops
  Nothing that was finished: `sa-eval resume DIR` simulates what is missing, `sa-eval report DIR` makes tables and
  pictures anew.

exit status
  0 all went well   1 finished, but an arm failed   2 refused   130, 143 interrupted
"""
CHANGED = {
    "modes": "attention variants to simulate",
    "lengths": "prompt lengths in tokens",
    "seeds": "seeds of the random orders; every figure is a mean over them with its interval",
    "out": "directory of the result (default: runs/<time>-coverage-layers)",
}


def main(arguments: Sequence[str]) -> int:
    namespace = build_parser().parse(arguments)
    given = {name: value for name, value in vars(namespace).items() if name != "verbose" and value is not None}
    asked = coverage_settings(given)
    progress = Progress(verbose=namespace.verbose)
    with progress.quiet():
        from sa_eval.coverage import simulating
    with interrupts.sigterm_stops():
        return _finish(*simulating.run(asked, progress))


def resume(path: str, progress: Progress) -> int:
    """Simulate what is missing in a folder of `sa-eval coverage`."""
    with progress.quiet():
        from sa_eval.coverage import simulating
    return _finish(*simulating.resume(path, progress))


def report(path: str) -> int:
    """Tables and pictures anew, from coverage.json alone."""
    from sa_eval.coverage.types import CoverageResult
    from sa_eval.records.directory import RunDirectory
    from sa_eval.records.result_folder import read_result

    _finish(RunDirectory(Path(path)), read_result(path, "coverage", CoverageResult), 0)
    return 0


def compare(paths: tuple[str, str], arms: tuple[str, str] | None) -> tuple[str, list[Facts], list[str]]:
    """Refused: every row of one result already stands beside its theory and its intervals."""
    raise SettingsError(
        f"results of `sa-eval coverage` are not compared ({paths[0]}, {paths[1]}): simulate both sets of modes in one "
        "command, or draw them together with sa_patch.analysis.plot_coverage"
    )


def _finish(directory: RunDirectory, result: CoverageResult, status: int) -> int:
    """Tables and pictures of what there is, whatever stopped it; returns the status."""
    from sa_eval.coverage import table

    with interrupts.ignored() if status > 2 else contextlib.nullcontext():
        from sa_eval.coverage import figures

        names = figures.write(directory, result)
        drawn = f"figures: {directory.path / 'figures'} ({', '.join(names)})" if names else "figures: none"
        print(f"\n{table.render(result)}\n\n{drawn}\nresult: {directory.path}")
    return status


def build_parser() -> Parser:
    parser = Parser("sa-eval coverage", f"{DESCRIPTION}\n{modes_text()}\n{EXAMPLES}", DETAILS)
    for name, setting in known_settings().items():
        if name in shared():
            add_flag(parser, setting, help=CHANGED.get(name, setting.help), default=DEFAULTS.get(name, setting.default))
    for setting in settings_of(CoverageSettings).values():
        add_flag(parser, setting)
    parser.add_argument("--verbose", action="store_true", help="let the libraries' logs through")
    return parser
