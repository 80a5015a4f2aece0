"""`sa-eval calibrate`: its flags, what it prints, and what resume and report do with its folder.

Heavy imports wait inside functions, so that --help and bad arguments answer at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sa_eval.calibration.settings import SHARED, CalibrationSettings, calibration_settings
from sa_eval.commands.flags import add_flag
from sa_eval.commands.parser import Parser
from sa_eval.processes import interrupts
from sa_eval.progress import Progress
from sa_eval.settings.config import known_settings
from sa_eval.settings.setting import settings_of
from sa_eval.settings.values import SettingsError

if TYPE_CHECKING:
    from sa_eval.calibration.types import CalibrationResult
    from sa_eval.records.directory import RunDirectory

HELP = "find the best plan for a model on your own text: another variant per layer, at a budget; no training"
DESCRIPTION = """\
Which keys does each layer of this model need? Finds, on your own text, the plan (a variant per layer) that stays
closest to full attention at a budget, and says what it costs on passages that nothing was decided with, beside the best
single recipe for all layers, shuffled plans and a random plan. No training: the weights stay as they are.
"""
EXAMPLES = """\
examples
  sa-eval calibrate --model HuggingFaceTB/SmolLM2-135M --text report.txt book.txt --window 64
  sa-eval calibrate --model ./my-model --text notes/*.md --window 128 --lengths 2048,4096 --swaps 48 --out plans/mine
  sa-eval --model ./my-model --plan plans/mine --modes swa,routed --window 128        the plan beside other arms
  sa-eval fidelity --model ./my-model --plan plans/mine --text other.txt --window 128 --length 2048
"""
DETAILS = """\
what it does
  Fit: one pass of full attention per passage shows what every candidate (recipe and window) changes at every layer's
  output; two recipes run in one layer alone show what such a change costs in the next-token distribution. A knapsack
  over the layers picks the candidates with the least estimated loss. Choose: the best single recipe; the best of
  a few plans (of all candidates or that recipe's alone, with and without full attention, or the recipe in all layers);
  and changes of it (budget moved between two layers, another recipe in one) that are kept where KL falls by more than
  two standard errors. Report: KL of the plan and of everything it is held against, on passages not read before.
  The plan costs at most the (query, key) pairs of swa with --window keys per query, at every one of --lengths; with
  --router-cost charged, what choosing keys costs included.

strata
  text         pieces of your texts: every position after the first --window tokens
  needle       a piece whose end repeats a snippet from far before: the repetition has to be found
  aggregation  a few snippets of a piece, some more frequent than others: which comes next follows from their counts
  A plan that keeps local fluency alone loses the last two; what it loses is said first.

cost
  With L layers and passages 2,4,6: about 6 (L + 5) passes to fit, 120 to find the best recipe, 12 per change that is
  tried, 144 for the report, each over one passage. An estimate is printed before it begins. Memory: as one passage
  with its logits at 512 positions, and full's distributions at 128 positions of the passages to choose with.
  Texts need 2 (2 + 4 + 6) passages of the first length: 24,576 tokens at 1,024.

what comes out (in --out, default runs/<time>-calibrate-<model>)
  the answer and a table here; sa_patch.json (the plan: sa_patch.load(model, DIR), sa-eval --plan DIR);
  calibration.json (settings, versions, text hashes, every number); report.html (self-contained); figures/;
  journal.jsonl (what was measured)

what is lost when it stops
  Nothing that was measured: the same command with the same --out goes on, and so does `sa-eval resume DIR`.
  `sa-eval report DIR` makes the page anew.

exit status
  0 done   2 refused (the message says what to do)   130, 143 interrupted
"""
CHANGED = {"out": "directory of the result (default: runs/<time>-calibrate-<model>)"}


def main(arguments: Sequence[str]) -> int:
    namespace = build_parser().parse(arguments)
    asked = calibration_settings({name: value for name, value in vars(namespace).items() if name != "verbose"})
    progress = Progress(verbose=namespace.verbose)
    with progress.quiet():
        from sa_eval.calibration import session
    with interrupts.sigterm_stops():
        return _finish(*session.run(asked, progress))


def resume(path: str, progress: Progress) -> int:
    """Go on in a folder of `sa-eval calibrate`."""
    with progress.quiet():
        from sa_eval.calibration import session
    return _finish(*session.resume(path, progress))


def report(path: str) -> int:
    """Table, pictures and page anew, from calibration.json alone."""
    from sa_eval.calibration.types import CalibrationResult
    from sa_eval.records.directory import RunDirectory
    from sa_eval.records.result_folder import read_result

    return _finish(RunDirectory(Path(path)), read_result(path, "calibrate", CalibrationResult), 0)


def compare(paths: tuple[str, str], arms: tuple[str, str] | None) -> NoReturn:
    """Two calibrations have no passages in common that neither decided with."""
    raise SettingsError(
        "calibrations are compared by their plans on texts that neither has seen: "
        f"sa-eval fidelity --plan {paths[0]} {paths[1]} --text FILE ..."
    )


def _finish(directory: RunDirectory, result: CalibrationResult, status: int) -> int:
    """Table and page of what there is, whatever stopped it; returns the status."""
    from sa_eval.calibration import page, words

    with interrupts.ignored() if status > 2 else contextlib.nullcontext():
        page.write(directory, result)
        print(f"\n{words.render(result)}\n")
        if result.found is not None:
            print(f"{words.usage(str(directory.path))}\n")
        print(f"report: {directory.path / 'report.html'}\nresult: {directory.path}")
    return status


def build_parser() -> Parser:
    parser = Parser("sa-eval calibrate", f"{DESCRIPTION}\n{EXAMPLES}", DETAILS)
    own, shared = settings_of(CalibrationSettings), known_settings()
    for setting in (shared["model"], shared["revision"], *own.values()):
        add_flag(parser, setting)
    for name in SHARED[2:]:
        add_flag(parser, shared[name], help=CHANGED.get(name, shared[name].help))
    parser.add_argument("--verbose", action="store_true", help="let the libraries' logs through")
    return parser
