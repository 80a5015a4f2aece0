"""The parser of every command."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from sa_eval.settings.values import SettingsError


class Parser(argparse.ArgumentParser):
    """A parser whose texts keep their lines, and whose errors are one line with the nearest flag."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            description=description,
            epilog=epilog,
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The flags given.

        Raises:
            SettingsError: for a flag that does not exist, or what no flag takes.
        """
        found, rest = self.parse_known_args(arguments)
        if rest:
            given = rest[0].split("=")[0]
            near = difflib.get_close_matches(given, self._option_string_actions, n=1)
            self.error(f"unknown argument {given[:100]!r}" + (f": did you mean {near[0]}?" if near else ""))
        return found

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} ({self.prog} --help lists the flags)")
