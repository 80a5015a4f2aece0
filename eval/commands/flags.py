"""Owns how settings become flags: every command that has a setting shows it with the same name, bounds and help.

Imports no torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from sa_eval.settings.modes import MODE_HELP

KINDS = {int: "N", "amount": "N|0.x", "samples": "N|all", "dense_below": "N|crossover", "layers": "SETS"}


def command_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser whose texts keep their lines."""
    return argparse.ArgumentParser(
        prog=prog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description=description,
        epilog=epilog,
    )


def modes_text() -> str:
    """The attention variants, a line each."""
    return "modes\n" + "".join(f"  {name:<16} {text}\n" for name, text in MODE_HELP.items())


def add_flag(parser: argparse.ArgumentParser, name: str, rule: Mapping[str, Any], default: Any, *also: str) -> None:
    """The flag of a setting; what is not given stays None, so that a file or the setting's default counts.

    Args:
        rule: the setting's metadata: help, kind, many, choices.
        default: shown in the help, unless that names one itself.
        also: other names of the flag.
    """
    flags, text = ["--" + name.replace("_", "-"), *also], rule["help"]
    if "(default:" not in text:
        text = f"{text} (default: {_shown(default)})"
    text = text.replace("%", "%%")
    if rule.get("kind") is bool:
        parser.add_argument(*flags, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    kind = "{" + ",".join(rule["choices"]) + "}" if "choices" in rule else KINDS.get(rule.get("kind", str), "TEXT")
    parser.add_argument(*flags, dest=name, nargs="+" if rule.get("many") else None, metavar=kind, help=text)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_shown(item) for item in value) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
