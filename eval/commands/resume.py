"""`sa-eval resume`: continue a run directory, in as many processes as it is launched in."""

from __future__ import annotations

from collections.abc import Sequence

from sa_eval.commands import load
from sa_eval.commands.parser import Parser
from sa_eval.commands.run import finish, is_first_process
from sa_eval.processes import interrupts
from sa_eval.progress import Progress

HELP = "continue a run, or a result of fidelity, speed or coverage, that was killed or in which something failed"
DETAILS = """\
examples
  sa-eval resume runs/20260131-093000-qwen3-tiny
  accelerate launch --multi_gpu --num_processes 8 -m sa_eval resume runs/qwen3-8b

what it does
  Documents that have a score are never asked again; those that are missing or failed are, and so are tasks whose data
  could not be fetched. Model, code, versions, settings and documents must be what the records belong to: whatever
  differs is named and refused, and nothing is overwritten. It may run on another device of the same kind and in any
  number of processes.
  A folder of `sa-eval fidelity`, `speed` or `coverage` is continued likewise: arms and lengths that are measured are
  not measured again. Texts, model, code, versions (and the machine of speed) must be the recorded ones.

exit status
  as `sa-eval run`: 0 all went well, 1 something failed, 2 refused, 130 or 143 interrupted
"""


def main(arguments: Sequence[str]) -> int:
    namespace = build_parser().parse(arguments)
    from sa_eval.records.result_folder import RUN, kind_of

    progress = Progress(verbose=namespace.verbose, enabled=is_first_process())
    kind = kind_of(namespace.directory)
    if kind != RUN:
        with interrupts.sigterm_stops():
            return load(kind).resume(namespace.directory, progress)
    with progress.quiet():
        from sa_eval.records import resume
        from sa_eval.run import runner
    directory, settings = resume.open_directory(namespace.directory)
    with interrupts.sigterm_stops():
        if resume.nothing_left(directory, settings):
            progress.say(f"{directory.path}: every document has its score, nothing is left to do")
            return finish(runner.Outcome(directory, main=is_first_process()), progress)
        return finish(runner.resume_run(namespace.directory, progress), progress)


def build_parser() -> Parser:
    parser = Parser("sa-eval resume", "Continue a run: what is missing or failed, nothing else.", DETAILS)
    parser.add_argument("directory", metavar="DIR", help="the run directory")
    parser.add_argument("--verbose", action="store_true", help="let the libraries' logs through")
    return parser
