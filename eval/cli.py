"""The command line: which command runs, and one clear message per error."""

from __future__ import annotations

import difflib
import io
import os
import sys
import warnings
from collections.abc import Sequence

from sa_eval import environment
from sa_eval.commands import COMMANDS, load
from sa_eval.errors import UserError
from sa_eval.processes import interrupts


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `sa-eval`; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode still gets its table
    warnings.filterwarnings("ignore", message="the prompt has")  # a gate says it, for every arm and length
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except UserError as error:
        rank = os.environ.get("RANK", "0")  # several processes: say which
        print(f"sa-eval{'' if rank == '0' else f' (process {rank})'}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if str(error.name).startswith(("sa_eval", "sa_patch")):
            raise
        needs = "sa-eval needs the packages of the extra `eval`"
        print(f'sa-eval: {error.name} is not installed; {needs}: pip install "sa-patch[eval]"', file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("sa-eval: interrupted before anything was evaluated", file=sys.stderr)
        return interrupts.status(stop)


def _run(given: list[str]) -> int:
    if given == ["--version"]:
        print("\n".join(f"{name:<13} {version}" for name, version in environment.versions().items()))
        return 0
    if not given or given[0].startswith("-"):
        return load("run").main(given)
    if given[0] not in COMMANDS:
        near = difflib.get_close_matches(given[0], COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {given[0][:100]!r}: {hint}")
    return load(given[0]).main(given[1:])
