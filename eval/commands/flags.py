"""How settings become flags: every command that has a setting shows it with the same name, bounds and help."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from sa_eval.commands.parser import Parser
from sa_eval.settings.declared import declared
from sa_eval.settings.setting import Setting

KINDS = {
    **{"integer": "N", "amount": "N|0.x", "number": "X", "text": "TEXT", "layers": "SETS"},
    **{"switch": "true|false", "files": "FILE"},
}


def modes_text() -> str:
    """The attention variants, a line each."""
    return "modes\n" + "".join(f"  {name:<16} {mode.help}\n" for name, mode in declared().modes.items())


def add_flag(parser: Parser, setting: Setting, *also: str, **changes: Any) -> None:
    """The flag of a setting; what is not given stays None, so that a file or the setting's default counts.

    Args:
        also: other names of the flag.
        changes: what is different in this command: its help or its default, which the help shows.
    """
    setting = replace(setting, **changes)
    flags, text = ["--" + setting.name.replace("_", "-"), *setting.also, *also], setting.help
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
