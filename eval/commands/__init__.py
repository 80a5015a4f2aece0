"""The subcommands of `sa-eval` by name. Each is a module with HELP (one line) and main(arguments) -> exit status.

A command raises SettingsError for whatever the user can mend; cli.py turns it into one line and exit status 2.
"""

from importlib import import_module
from typing import Any

COMMANDS = ("run", "resume", "report", "compare", "speed", "fidelity", "calibrate", "coverage", "tune")


def load(name: str) -> Any:
    """The command's module; heavy imports wait inside its functions."""
    return import_module(f"sa_eval.commands.{name}")
