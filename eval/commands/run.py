"""`sa-eval run`, the command that runs when none is named: flags from the settings, the order of the steps.

Heavy imports wait until they are needed, so --help and bad arguments answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from typing import Any

from sa_eval.commands import COMMANDS, load
from sa_eval.commands.flags import add_flag, modes_text
from sa_eval.commands.parser import Parser
from sa_eval.processes import interrupts
from sa_eval.progress import Progress
from sa_eval.settings import presets
from sa_eval.settings.config import Settings, known_settings, settings_from
from sa_eval.settings.settings_file import read_yaml
from sa_eval.settings.values import SettingsError
from sa_eval.tasks import TASKS

EXAMPLES = """\
examples
  sa-eval                             bundled model, offline suite, full/swa/sa/moba, two windows, two lengths
  sa-eval --modes sa,sa-bucket,sa+swa,moba --window 32,64,128 --lengths 512,1024,2048 --seeds 0,1,2
  sa-eval --tasks needle_single,majority_topic --num-samples 50 --dense-tail 0,32
  sa-eval --tasks niah_single_1,niah_multikey_2 --lengths 2048     RULER, through lm-eval
  sa-eval --model Qwen/Qwen3-8B --device cuda --dtype bfloat16 --window 128,512 --lengths 4096 --dry-run
  sa-eval --config smoke --out runs/smoke                          shipped settings by name; a path works as well
  sa-eval --modes swa,sa --sinks 0,16 --dense-layers none/1::2 --form sliding,bucket --dry-run     a sweep
"""
DETAILS = """\
settings
  Flags and YAML (--config) are the same settings; a flag wins over the file. Lists take commas or spaces. Unknown keys
  are errors. The effective settings are saved as config.yaml in the run directory, and --config runs them again.
  Lists of modes, windows and options multiply: every combination is an arm, once; what a variant refuses is left out
  and listed with its reason. YAML alone knows `arms` (named arms with options of their own, see configs/fair-swa.yaml)
  and `published` (numbers to compare with, see configs/paper.yaml).

what comes out (in --out, default runs/<time>-<model>)
  a table here; report.html (self-contained); results.json; summary.csv; records/*.jsonl, one line per document

exit status
  0 all went well   1 finished, but something failed (see the report), or a process died
  2 refused: bad arguments, a full disk, a failed self-test (the message says what to do)   130, 143 interrupted

what is lost when it stops
  Nothing that was finished: records are on the disk before the next documents are asked, and `sa-eval resume DIR` does
  what is missing or failed, after a kill, a full disk, Ctrl-C or memory that ran out.

models larger than a device
  --device-map auto                              one process; accelerate spreads the layers, over CPU and disk too
  torchrun --nproc-per-node 4 -m sa_eval run --tp ...   every layer split over four processes (tensor parallel)

several devices or machines
  accelerate launch --multi_gpu --num_processes 8 -m sa_eval run --device cuda ...
  torchrun --nproc-per-node 2 -m sa_eval run --device cpu ...
  Documents are shared out, each process on its own device of that kind; with several machines (--num_machines) the run
  directory must be on a disk they share. The records are those of a single process. The bar shows the first process's
  share.
"""


HELP = "compare variants on tasks, documents paired, budgets measured (what `sa-eval` alone does)"


def main(arguments: Sequence[str]) -> int:
    namespace = build_parser().parse(arguments)
    if namespace.list_tasks:
        return list_tasks()
    settings = effective_settings(namespace)
    return dry_run(settings) if namespace.dry_run else run(settings, verbose=namespace.verbose)


def build_parser() -> Parser:
    parser = Parser(
        "sa-eval",
        "Compare sparse attention variants on long-context tasks, at measured and matched budgets.\n\n"
        f"{_commands()}{modes_text()}\n{EXAMPLES}",
        DETAILS,
    )
    parser.add_argument(
        "--config",
        metavar="FILE|NAME",
        help=f"settings from a YAML file, or shipped ones by name: {', '.join(presets.names())}",
    )
    for setting in known_settings().values():
        if not setting.in_files_only:
            add_flag(parser, setting)
    parser.add_argument(
        "--dry-run", action="store_true", help="print arms, budgets, documents, estimated time and memory; run nothing"
    )
    parser.add_argument("--list-tasks", action="store_true", help="print the tasks that --tasks takes")
    parser.add_argument("--verbose", action="store_true", help="let the libraries' logs through")
    return parser


def _commands() -> str:
    lines = "".join(f"  sa-eval {name:<10} {load(name).HELP}\n" for name in COMMANDS)
    return f"commands (each has its own --help)\n{lines}\n"


def effective_settings(namespace: argparse.Namespace) -> Settings:
    """Defaults, then the file, then the flags."""
    given = read_yaml(namespace.config) if namespace.config else {}
    flags = {name: value for name, value in vars(namespace).items() if name in known_settings() and value is not None}
    return settings_from({**given, **flags})


def run(settings: Settings, *, verbose: bool = False) -> int:
    progress = Progress(verbose=verbose, enabled=is_first_process())
    with progress.quiet():
        from sa_eval.run import runner
    with interrupts.sigterm_stops():
        return finish(runner.run(settings, progress), progress)


def finish(outcome: Any, progress: Any) -> int:
    """Table and report of what there is; the exit status. Processes beside the first one have nothing to say."""
    if not outcome.main:
        return outcome.status or 0
    from sa_eval.page import report
    from sa_eval.results import summary, table

    directory = outcome.directory
    with contextlib.nullcontext() if outcome.status is None else interrupts.ignored():
        with progress.step("statistics"):
            results = summary.summarise(directory)
        print("\n" + table.render(results) + "\n")
        report.write(directory)
        print(f"report:  {directory.path / 'report.html'}\nrecords: {directory.path}")
    if outcome.status is not None:
        return outcome.status
    return 1 if results.failures else 0


def is_first_process() -> bool:
    """Whether this is the process that talks, before anything heavy is imported."""
    return os.environ.get("RANK", "0") == "0"


def dry_run(settings: Settings) -> int:
    from sa_eval.dry_run import render

    try:
        print(render(settings))
    except (ValueError, NotImplementedError) as error:  # an arm that this model refuses
        raise error if isinstance(error, SettingsError) else SettingsError(f"this cannot run: {error}") from error
    return 0


def list_tasks() -> int:
    print("offline suite (no network; `offline` is all of them)")
    for name, task in TASKS.items():
        print(f"  {name:<20} {task.family:<12} {'generated answer' if task.output == 'generate' else 'log-likelihood'}")
    print("\nRULER through lm-eval, no network")
    print("  niah_single_1  niah_multikey_2  niah_multikey_3  ruler_vt  ruler_cwe  ruler_fwe")
    print("  ruler-offline is all of these, ruler all thirteen: seven of them fetch texts")
    print("\nany other lm-eval task by its name (`lm-eval ls tasks` lists them); most need the network once")
    return 0
