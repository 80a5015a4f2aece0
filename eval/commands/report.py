"""`sa-eval report`: results, tables and report from a run's files alone, or from several runs put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sa_eval.commands import load
from sa_eval.commands.parser import Parser
from sa_eval.settings.values import SettingsError

HELP = "compute table, results and report anew from a run's files; merge runs whose arms belong together"
DETAILS = """\
examples
  sa-eval report runs/20260131-093000-qwen3-tiny          also of a run that is going on, or was interrupted
  sa-eval report runs/windows-64 runs/windows-256 --out runs/all-windows

what it does
  One directory: results.json, summary.csv and report.html in it are computed anew; nothing is loaded or evaluated.
  Several: their arms (and seeds) are put together in a new directory. What decides a score has to be the same in all of
  them: model, code, torch, transformers, lm_eval, dtype, kind of device, and every document. Whatever differs is named
  and refused. Other libraries and machines may differ: a gate of the report says so, and latencies are taken from one
  kind of machine only. An arm in two runs counts once if its records carry the same keys, and is refused otherwise.
  A folder of `sa-eval fidelity` or `sa-eval speed`: its table, CSV, pictures and report.html are made anew; of `sa-eval
  coverage` its tables and pictures.

exit status
  0 done   2 refused
"""


def main(arguments: Sequence[str]) -> int:
    namespace = build_parser().parse(arguments)
    from sa_eval.page import report
    from sa_eval.records import opening
    from sa_eval.records.result_folder import RUN, one_kind
    from sa_eval.results import merge, summary, table

    if len({Path(path).resolve() for path in namespace.directories}) < len(namespace.directories):
        raise SettingsError("one run is named twice: give every run directory once")
    kind = one_kind(namespace.directories)
    if kind != RUN:
        if len(namespace.directories) > 1 or namespace.out is not None:
            raise SettingsError(
                f"results of `sa-eval {kind}` are not merged: name one folder; `sa-eval compare` sets two side by side"
            )
        return load(kind).report(namespace.directories[0])
    runs = [opening.open_run(path) for path in namespace.directories]
    if len(runs) > 1 and namespace.out is None:
        raise SettingsError("several runs are merged into a new directory: name it with --out")
    if len(runs) == 1 and namespace.out is not None:
        raise SettingsError("--out is for merging several runs; the report of one run is written into it")
    directory = merge.merge(runs, str(namespace.out)) if len(runs) > 1 else runs[0][0]
    print("\n" + table.render(summary.summarise(directory)) + "\n")
    report.write(directory)
    print(f"report:  {directory.path / 'report.html'}\nrecords: {directory.path}")
    return 0


def build_parser() -> Parser:
    parser = Parser("sa-eval report", "Report of one run, or of several put together.", DETAILS)
    parser.add_argument("directories", metavar="DIR", nargs="+", help="run directories")
    parser.add_argument("--out", metavar="DIR", help="where merged runs go: a new or empty directory")
    return parser
