"""Owns the command `sa-lm-eval`: lm-eval's own command line, with the model type `sa` in its registry.

lm-eval versions that read the entry points `lm_eval.models` know the type without it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sa_eval.settings.values import SettingsError

TARGET = "sa_eval.lm.plugin:SparseLM"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run lm-eval's command line on these arguments (the process's own when None).

    Returns:
        The exit status: 0, or 2 for arguments that are refused.
    """
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    if "sa" not in model_registry:
        model_registry.register("sa", target=TARGET)
    if arguments is not None:
        sys.argv = ["sa-lm-eval", *arguments]
    try:
        _refuse_cache(sys.argv[1:])
        cli_evaluate()
    except SettingsError as error:
        print(f"sa-lm-eval: {error}", file=sys.stderr)
        return 2
    return 0


def _refuse_cache(arguments: Sequence[str]) -> None:
    """Before minutes are spent on loading; a cache that a configuration file asks for is refused after it."""
    names = [argument.split("=")[0] for argument in arguments]
    if "--use_cache" in names or "-c" in names:
        from sa_eval.lm.plugin import NO_CACHE

        raise SettingsError(NO_CACHE)
