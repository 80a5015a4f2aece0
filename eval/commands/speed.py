"""`sa-eval speed`: its flags, what it prints, and what resume, report and compare do with its results.

Heavy imports wait inside functions, so that --help and bad arguments answer at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sa_eval.commands.flags import add_flag, modes_text
from sa_eval.commands.parser import Parser
from sa_eval.processes import interrupts
from sa_eval.progress import Progress
from sa_eval.settings.config import known_settings
from sa_eval.settings.setting import settings_of
from sa_eval.speed.settings import DEFAULTS, SpeedSettings, shared, speed_settings

if TYPE_CHECKING:
    from sa_eval.records.directory import RunDirectory
    from sa_eval.records.types import Facts
    from sa_eval.speed.types import SpeedResult

HELP = "measure speed and memory: time to first token, tokens per second, peak memory, beside full"
DESCRIPTION = """\
Measure what a model takes to read a prompt and to go on from it, with its own attention (full, always there), with
every sparse variant asked for, and with no attention at all (none, always there): a floor that no method can beat.
"""
EXAMPLES = """\
examples
  sa-eval speed                                     the bundled model at 512, 1024 and 2048 tokens: under a minute
  sa-eval speed --modes swa,sa,moba --window 128,512 --lengths 1024,2048,4000
  sa-eval speed --lengths 2048 --kernels all        every kernel that can run here, the best and the worst beside each
  sa-eval speed --modes sa-dyadic --decode full,sparse --new-tokens 128        decoding from few keys, too
  sa-eval speed --model Qwen/Qwen3-8B --device cuda --dtype bfloat16 --lengths 8192,32768 --window 512 --batch-size 4
  sa-eval speed --shape qwen3-8b --device cuda --dtype bfloat16 --lengths 32768,65536,131072 \\
                --window 512                        the real shape without the weights: speed does not depend on them
  sa-eval speed --random-weights --lengths 8192 --threads 1 --cpu-time         on a machine that others keep busy
"""
DETAILS = """\
how it is measured
  Time to first token: from the call of the model's own greedy generate until the first token is on the host. Tokens
  per second: the tokens after it, in the same call. Arms take turns. In each, the model is patched (not timed), warmed
  up by one call of the same length, timed and restored; medians count, all repeats are kept, and so is what the first
  call took. Peak memory is what torch's allocator held beyond the weights; on a CPU it is read in a call of its own.
  Random weights: as fast as trained ones, except that moba's blocks are chosen by content. They may be longer than the
  model's positions.

what comes out (in --out, default runs/<time>-speed-<model>)
  a headline and a table here; report.html (self-contained); speed.json (every repeat, settings, versions, hardware);
  speed.csv; figures/ (PNG and SVG)

what is lost when it stops
  Nothing that was finished: speed.json is written before the first length and after every one. `sa-eval resume DIR`
  measures the lengths that are missing or in which an arm failed, `sa-eval report DIR` makes the page anew,
  `sa-eval compare A B` sets two results side by side.

exit status
  0 all went well   1 finished, but an arm failed (its row says why)   2 refused   130, 143 interrupted
"""
CHANGED = {
    "batch_size": "rows of the same prompt per call",
    "out": "directory of the result (default: runs/<time>-speed-<model>)",
    "lengths": "prompt lengths in tokens",
}


def main(arguments: Sequence[str]) -> int:
    namespace = build_parser().parse(arguments)
    given = {name: value for name, value in vars(namespace).items() if name != "verbose" and value is not None}
    asked = speed_settings(given)
    progress = Progress(verbose=namespace.verbose)
    with progress.quiet():
        from sa_eval.speed import length_by_length
    with interrupts.sigterm_stops():
        return _finish(*length_by_length.run(asked, progress))


def resume(path: str, progress: Progress) -> int:
    """Measure the lengths that are missing in a folder of `sa-eval speed`."""
    with progress.quiet():
        from sa_eval.speed import length_by_length
    return _finish(*length_by_length.resume(path, progress))


def report(path: str) -> int:
    """Table, CSV, pictures and page anew, from speed.json alone."""
    from sa_eval.records.directory import RunDirectory
    from sa_eval.speed.beside_full import read

    _finish(RunDirectory(Path(path)), read(path), 0)
    return 0


def compare(paths: tuple[str, str], arms: tuple[str, str] | None) -> tuple[str, list[Facts], list[str]]:
    """Two results as text, as rows, and what they differ in besides their numbers."""
    from sa_eval.records.result_folder import different
    from sa_eval.records.types import plain
    from sa_eval.speed import time_comparison
    from sa_eval.speed.beside_full import read

    one, other = map(read, paths)
    pairs = time_comparison.compare(one, other, arms)
    return time_comparison.render(pairs), [plain(pair) for pair in pairs], different(one, other)


def _finish(directory: RunDirectory, result: SpeedResult, status: int) -> int:
    """Table and page of what there is, whatever stopped it; returns the status."""
    from sa_eval.speed import time_table

    page = "report: none, matplotlib is not installed: pip install 'sa-patch[eval]'"
    with interrupts.ignored() if status > 2 else contextlib.nullcontext():
        directory.write_text("speed.csv", time_table.to_csv(result))
        with contextlib.suppress(ModuleNotFoundError):  # speed runs with torch and transformers alone
            from sa_eval.speed import time_page

            time_page.write(directory, result)
            page = f"report: {directory.path / 'report.html'}"
        print(f"\n{time_table.table(result)}\n\n{page}\nresult: {directory.path}")
    return status


def build_parser() -> Parser:
    parser = Parser("sa-eval speed", f"{DESCRIPTION}\n{modes_text()}\n{EXAMPLES}", DETAILS)
    for name, setting in known_settings().items():
        if name in shared():
            default = DEFAULTS.get(name, setting.default)
            add_flag(parser, setting, help=CHANGED.get(name, setting.help), default=default)
    for setting in settings_of(SpeedSettings).values():
        add_flag(parser, setting)
    parser.add_argument("--verbose", action="store_true", help="let the libraries' logs through")
    return parser
