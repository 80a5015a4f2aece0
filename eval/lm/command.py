"""The command `sa-lm-eval`: lm-eval's own command line, with the model type `sa` in its registry.

lm-eval versions that read the entry points `lm_eval.models` know the type without it.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sa_eval.settings.values import SettingsError
from sa_patch.variants import all_options, modes

TARGET = "sa_eval.lm.plugin:SparseLM"
ABOUT = """\
sa-lm-eval is lm-eval's command line with one more model type, sa: a causal language model with an attention variant.

  sa-lm-eval run --model sa --model_args pretrained=Qwen/Qwen3-0.6B,mode=sa,window=512,seed=1 --tasks lambada_openai

  mode      {modes}
  options   {options}
  others    kernel, and whatever --model hf takes (dtype, peft, parallelize, ...)

What follows is lm-eval's own help.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run lm-eval's command line on these arguments (the process's own when None).

    Returns:
        The exit status: 0, or 2 for arguments that are refused, documents that cannot be asked, missing packages.
    """
    if arguments is not None:
        sys.argv = ["sa-lm-eval", *arguments]
    try:
        _run(sys.argv[1:])
    except SettingsError as error:
        print(f"sa-lm-eval: {error}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: Sequence[str]) -> None:
    evaluate, plugin = _imported()
    if not arguments or {"-h", "--help"} & set(arguments):
        print(ABOUT.format(modes=_listed(modes()), options=_listed(all_options())))
    _refuse_cache(arguments, plugin.NO_CACHE)
    try:
        evaluate()
    except plugin.RequestError as error:
        raise SettingsError(str(error)) from error


def _listed(names: Iterable[str]) -> str:
    """Beside the words mode and options in the help."""
    return textwrap.fill(", ".join(names), 106, subsequent_indent=" " * 12)


def _imported() -> tuple[Callable[[], Any], Any]:
    """lm-eval's command line, which takes seconds to import, with the model type registered; and the type's module."""
    try:
        evaluate, registry, plugin = _parts()
    except ModuleNotFoundError as error:
        name = (error.name or str(error)).partition(".")[0]
        raise SettingsError(
            f'the package {name} is missing, which evaluating needs: pip install "sa-patch[eval]"'
        ) from error
    if "sa" not in registry:
        registry.register("sa", target=TARGET)
    return evaluate, plugin


def _parts() -> tuple[Any, Any, Any]:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    from sa_eval.lm import plugin

    return cli_evaluate, model_registry, plugin


def _refuse_cache(arguments: Sequence[str], reason: str) -> None:
    """Before minutes are spent on loading; a cache that a configuration file asks for is refused after it."""
    names = [argument.split("=")[0] for argument in arguments]
    if "--use_cache" in names or "-c" in names:
        raise SettingsError(reason)
