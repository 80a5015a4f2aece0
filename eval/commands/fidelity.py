"""`sa-eval fidelity`: its flags, what it prints, and what resume, report and compare do with its results.

Heavy imports wait inside functions, so that --help and bad arguments answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sa_eval.commands.flags import add_flag, modes_text
from sa_eval.commands.parser import Parser
from sa_eval.messages import shown
from sa_eval.processes import interrupts
from sa_eval.progress import Progress
from sa_eval.settings.config import Settings, known_settings, option_settings, settings_from
from sa_eval.settings.settings_file import read_yaml
from sa_eval.settings.values import SettingsError

if TYPE_CHECKING:
    from sa_eval.fidelity.types import Fidelity
    from sa_eval.records.directory import RunDirectory
    from sa_eval.records.types import Facts

HELP = "compare every arm's next-token distribution with the full model's, on your own texts; no task needed"
DESCRIPTION = """\
How far is every variant from the full model, on your own texts? No task and no data set is needed: the full model and
the patched one read the same tokens, and what they predict is compared. Any causal model that sa_patch accepts.
"""
EXAMPLES = """\
examples
  sa-eval fidelity                                          the bundled model on the bundled texts
  sa-eval fidelity --modes swa,sa,sa+swa,moba --window 64,128 --lengths 512,1024,2048 --seeds 0,1,2
  sa-eval fidelity --model Qwen/Qwen3-8B --device cuda --dtype bfloat16 --text report.txt book.txt --length 8192 \\
                   --window 512 --passages 4
  sa-eval fidelity --model ./my-model --text notes/*.md --length 4096 --sinks 4 --dense-tail 64
"""
DETAILS = """\
texts
  UTF-8 files, each a text of its own, cut into passages of --length tokens (a shorter text is one passage); what is
  used and what is left out is printed. Without --text, for the bundled models only: documents of the offline suite,
  written for the length, with questions and their answers. These models know nothing else, and were trained on the
  answers alone: only these are scored there. Any other model needs --text.

what is measured, on the same tokens for every arm
  KL(full || arm) of the next-token distribution; how often both prefer the same token; perplexity, and the difference
  in nats per token: overall, by the tokens read before, by how far back the token could be copied from (the last
  earlier occurrence of the same two tokens).
  Per layer, at up to 512 positions of a passage: the share of full attention's mass on keys that the arm shows (kept
  mass), also by distance, the first four tokens apart; the relative error of the attention's output when it gets the
  full model's queries, keys and values (isolated), and when it gets what the patched layers before it made; the
  relative error of the residual stream after the layer.
  All of it while a text is read (prefill); --decode changes nothing here, so it is no flag.

cost
  Per arm and passage: one pass of the full model, one of the patched model per seed. Memory: logits exist for a chunk
  of positions at a time, attention scores for a few queries; the rest grows with the length alone.

what comes out (in --out, default runs/<time>-fidelity-<model>)
  a headline and a table here, the largest loss first; report.html (self-contained); fidelity.json (all numbers,
  settings, versions, hardware, text hashes); fidelity.csv; figures/ (PNG and SVG)

what is lost when it stops
  Nothing that was finished: fidelity.json is written before the first arm and after every arm and length.
  `sa-eval resume DIR` measures what is missing or failed, `sa-eval report DIR` makes the page anew,
  `sa-eval compare A B` sets two results on the same passages side by side.

exit status
  0 all went well   1 finished, but an arm failed   2 refused (the message says what to do)   130, 143 interrupted
"""
# Settings of a run that mean the same here, besides the variants' options.
SHARED = (
    *("model", "revision", "modes", "plans", "lengths", "seeds", "doc_seed", "kernel"),
    *("threads", "device", "dtype", "device_map", "use_safetensors", "trust_remote_code", "out"),
)
CHANGED = {
    "lengths": "tokens of a passage; several values measure each length apart",
    "doc_seed": "seed of the bundled texts",
    "out": "directory of the result (default: runs/<time>-fidelity-<model>)",
}


def main(arguments: Sequence[str]) -> int:
    namespace = build_parser().parse(arguments)
    settings, passages = settings_of(namespace), _passages(namespace.passages)
    progress = Progress(verbose=namespace.verbose)
    with progress.quiet():
        from sa_eval.fidelity import arm_by_arm
        from sa_eval.fidelity.types import Request
    with interrupts.sigterm_stops():
        request = Request(files=list(namespace.text or ()), passages=passages)
        return _finish(*arm_by_arm.run(settings, request, progress))


def resume(path: str, progress: Progress) -> int:
    """Measure what is missing in a folder of `sa-eval fidelity`."""
    with progress.quiet():
        from sa_eval.fidelity import arm_by_arm
    return _finish(*arm_by_arm.resume(path, progress))


def report(path: str) -> int:
    """Table, CSV, pictures and page anew, from fidelity.json alone."""
    from sa_eval.fidelity.types import Fidelity
    from sa_eval.records.directory import RunDirectory
    from sa_eval.records.result_folder import read_result

    _finish(RunDirectory(Path(path)), read_result(path, "fidelity", Fidelity), 0)
    return 0


def compare(paths: tuple[str, str], arms: tuple[str, str] | None) -> tuple[str, list[Facts], list[str]]:
    """Two results as text, as rows, and what they differ in besides their numbers."""
    from sa_eval.fidelity import loss_comparison
    from sa_eval.fidelity.types import Fidelity
    from sa_eval.records.result_folder import different, read_result
    from sa_eval.records.types import plain

    one, other = (read_result(path, "fidelity", Fidelity) for path in paths)
    pairs = loss_comparison.compare(one, other, arms)
    return loss_comparison.render(pairs), [plain(pair) for pair in pairs], different(one, other)


def _finish(directory: RunDirectory, results: Fidelity, status: int) -> int:
    """Table and page of what there is, whatever stopped it; returns the status."""
    from sa_eval.fidelity import loss_page, loss_table

    with interrupts.ignored() if status > 2 else contextlib.nullcontext():
        loss_page.write(directory, results)
        print(f"\n{loss_table.render(results)}\n\nreport: {directory.path / 'report.html'}\nresult: {directory.path}")
    return status


def build_parser() -> Parser:
    parser = Parser("sa-eval fidelity", f"{DESCRIPTION}\n{modes_text()}\n{EXAMPLES}", DETAILS)
    parser.add_argument(
        "--text", nargs="+", metavar="FILE", help="UTF-8 text files (default: the bundled texts, for bundled models)"
    )
    parser.add_argument(
        "--passages",
        metavar="N|all",
        help="passages of a text at most, spread over it (default: 8); for the bundled texts: documents per task "
        "(default: 2)",
    )
    parser.add_argument("--config", metavar="FILE|NAME", help="settings from a YAML file of `sa-eval run`")
    for name, setting in known_settings().items():
        if name in shared():
            also = ["--length"] if name == "lengths" else []
            add_flag(parser, setting, *also, help=CHANGED.get(name, setting.help))
    parser.add_argument("--verbose", action="store_true", help="let the libraries' logs through")
    return parser


def shared() -> list[str]:
    """The settings of a run that are flags here; texts are only read, so `decode` changes nothing."""
    return [*SHARED, *(setting.name for setting in option_settings() if setting.name != "decode")]


def settings_of(namespace: argparse.Namespace) -> Settings:
    """Defaults, then what the file says about models and arms (not about tasks), then the flags."""
    given = read_yaml(namespace.config) if namespace.config else {}
    settings_from(given)  # a typo is an error, also where the setting means nothing here
    known = {name: value for name, value in given.items() if name in (*shared(), "arms")}
    flags = {name: value for name, value in vars(namespace).items() if name in shared() and value is not None}
    return settings_from({**known, **flags})


def _passages(text: str | None) -> int | Literal["all"] | None:
    if text is None or text == "all":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(f"passages must be a whole number of at least 1, or all; found {shown(text)}")
    return int(text)
