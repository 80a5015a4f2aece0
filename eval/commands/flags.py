"""How settings become flags: every command that has a setting shows it with the same name, bounds and help."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

from sa_eval.settings.setting import Setting
from sa_eval.settings.values import SettingsError
from sa_patch.variants import modes

KINDS = {"integer": "N", "amount": "N|0.x", "text": "TEXT", "layers": "SETS", "switch": "true|false"}


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


def modes_text() -> str:
    """The attention variants, a line each."""
    return "modes\n" + "".join(f"  {name:<16} {mode.help}\n" for name, mode in modes().items())


def add_flag(parser: argparse.ArgumentParser, setting: Setting, *also: str, **changes: Any) -> None:
    """The flag of a setting; what is not given stays None, so that a file or the setting's default counts.

    Args:
        also: other names of the flag.
        changes: what is different in this command: its help or its default, which the help shows.
    """
    setting = replace(setting, **changes)
    flags, text = ["--" + setting.name.replace("_", "-"), *also], setting.help
    if "(default:" not in text:
        text = f"{text} (default: {_shown(setting.default)})"
    text = text.replace("%", "%%")
    if setting.kind == "switch" and not setting.many:
        parser.add_argument(*flags, dest=setting.name, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    words = ",".join(setting.words)
    takes = f"{{{words}}}" if setting.kind == "choice" else "|".join(filter(None, [KINDS[setting.kind], words]))
    parser.add_argument(*flags, dest=setting.name, nargs="+" if setting.many else None, metavar=takes, help=text)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_shown(item) for item in value) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
