"""`sa-eval compare`: two runs side by side, from their files alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sa_eval.commands import load
from sa_eval.commands.parser import Parser
from sa_eval.messages import one_line
from sa_eval.results.text_tables import sides
from sa_eval.settings.values import SettingsError

if TYPE_CHECKING:
    from sa_eval.records.types import Facts

HELP = "set two runs side by side: differences on the same documents, which were lost and won"
DETAILS = """\
examples
  sa-eval compare runs/before runs/after                     every arm that both have
  sa-eval compare runs/qwen3-8b runs/qwen3-8b --arm-a swa-w64 --arm-b sa-w64
  sa-eval compare runs/qwen3-8b runs/llama-8b --documents 10 --json difference.json

what it does
  Pairs the two runs' documents by hash (they have to be the same) and prints B minus A overall, per family and per
  task: interval, p-value, Holm's correction over everything printed, documents lost and won. Models, versions and
  machines may differ and are named. Runs that are alike in all of it are one line. Nothing is loaded or evaluated.
  Two folders of `sa-eval fidelity` (on the same passages) or of `sa-eval speed`: every arm and length that both have;
  what is identical is one line.

exit status
  0 done   2 the runs cannot be compared
"""


def main(arguments: Sequence[str]) -> int:
    namespace = build_parser().parse(arguments)
    if (namespace.arm_a is None) != (namespace.arm_b is None):
        raise SettingsError("--arm-a and --arm-b go together: one arm of each run")
    from sa_eval.records.result_folder import RUN, one_kind

    arms = (namespace.arm_a, namespace.arm_b) if namespace.arm_a else None
    kind = one_kind([namespace.a, namespace.b])
    if kind != RUN:
        text, found = _results(kind, namespace, arms)
    else:
        from sa_eval.records import opening
        from sa_eval.results import comparison, comparison_table

        one, other = (comparison.Side.of(*opening.open_run(path)) for path in (namespace.a, namespace.b))
        compared = comparison.compare(one, other, arms)
        text, found = comparison_table.render(compared, namespace.documents), compared.plain()
    print(text)
    if namespace.json:
        try:
            Path(namespace.json).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"--json {namespace.json} cannot be written: {one_line(error)}") from error
    return 0


def _results(kind: str, namespace: argparse.Namespace, arms: tuple[str, str] | None) -> tuple[str, Facts]:
    """Two results of fidelity or speed, as text and as plain values."""
    if namespace.documents:
        raise SettingsError(f"--documents names documents of runs; results of `sa-eval {kind}` have none")
    text, rows, different = load(kind).compare((namespace.a, namespace.b), arms)
    head = sides(namespace.a, namespace.b, different)
    return f"{head}\n\n{text}", {"a": namespace.a, "b": namespace.b, "different": different, "rows": rows}


def build_parser() -> Parser:
    parser = Parser("sa-eval compare", "Set two runs side by side.", DETAILS)
    parser.add_argument("a", metavar="A", help="run directory")
    parser.add_argument("b", metavar="B", help="run directory; differences are B minus A")
    parser.add_argument("--arm-a", metavar="NAME", help="an arm of A (default: every arm that both runs have)")
    parser.add_argument("--arm-b", metavar="NAME", help="the arm of B to set against it")
    parser.add_argument("--documents", metavar="N", type=int, default=0, help="name the first N lost and won documents")
    parser.add_argument("--json", metavar="FILE", help="write everything to a file")
    return parser
