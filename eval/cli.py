"""Owns the command line: which command runs, and one clear message per error."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from sa_eval.commands import COMMANDS, load
from sa_eval.processes import interrupts
from sa_eval.settings.config import SettingsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `sa-eval`; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode still gets its table
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = (given[0], given[1:]) if given and given[0] in COMMANDS else ("run", given)
    try:
        return load(name).main(rest)
    except SettingsError as error:
        rank = os.environ.get("RANK", "0")  # several processes: say which
        print(f"sa-eval{'' if rank == '0' else f' (process {rank})'}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("sa-eval: interrupted before anything was evaluated", file=sys.stderr)
        return interrupts.status(stop)
