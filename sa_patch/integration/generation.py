"""What a patched model's `generate` does differently: it says what is a prompt, and refuses what would be wrong."""

import threading
from typing import Any

import torch
from torch import Tensor

from sa_patch.integration.state import State, state

# Ways to generate that transformers fetches from its hub when they are asked for: nobody can test them beforehand.
_REMOTE = ("contrastive_search", "dola_generation", "group_beam_search", "constrained_beam_search")


def check_generation(model: Any, mode: Any, config: Any, options: Any) -> None:
    """`generate`'s own check, and ours: what would be computed wrong is refused before anything runs."""
    held = state(model)
    if held is not None and held.overridden is None and not held.plan.always_dense:
        _refuse_generation(held, getattr(mode, "value", mode), config)
    type(model)._validate_generation_mode(model, mode, config, options)


def _refuse_generation(held: State, name: str, config: Any) -> None:
    plan = held.plan
    reason = plan.whole_prompt_reason()
    if name in _REMOTE:
        raise NotImplementedError(
            f"{name} runs code that transformers downloads, untested with sa_patch: use greedy search, sampling or "
            "beam search, or restore the patch"
        )
    again = {
        "assisted_generation": "(assistant models, prompt lookup) reads guesses together with the prompt",
        "use_cache=False": "reads the whole text again for every token, as a prompt",
    }
    asked = name if name in again else "use_cache=False" if config.use_cache is False else None
    needs = ["decode='sparse', got 'full'"] if plan.decode == "full" else []
    needs += [f"keys that no later token changes, but {reason}"] if reason else []
    if asked and needs:
        raise NotImplementedError(
            f"{asked} {again[asked]}, so it needs {', and '.join(needs)}. Change the options, generate without it, or "
            "restore the patch"
        )
    chunk = getattr(config, "prefill_chunk_size", None)
    reason = plan.piece_reason(chunk) if chunk else None
    if reason:
        raise NotImplementedError(
            f"prefill_chunk_size={chunk} cuts the prompt, but {reason}. Leave one of them out, or restore the patch"
        )


def prefill(model: Any, *args: Any, **kwargs: Any) -> Any:
    """`generate`'s own prefill; while it runs, even a chunk of one token belongs to the prompt."""
    held = state(model)
    if held is None:
        return type(model)._prefill(model, *args, **kwargs)
    if args and isinstance(args[0], Tensor) and not torch.compiler.is_compiling():
        held.warn_if_short(args[0].shape[-1])
    held.prompt_threads.add(threading.get_ident())
    try:
        return type(model)._prefill(model, *args, **kwargs)
    finally:
        held.prompt_threads.discard(threading.get_ident())


def start_continuous_batching(model: Any, *args: Any, **kwargs: Any) -> Any:
    """transformers' entry to continuous batching, refused here: it would run without the patch, or fail on the way."""
    held = state(model)
    if held is not None and held.overridden is None:
        raise NotImplementedError(
            "continuous batching (generate_batch, init_continuous_batching, cache_implementation='paged') replaces "
            "the attention of the model, so the patch would not run: use generate with a padded batch, or restore the "
            "patch"
        )
    return type(model).init_continuous_batching(model, *args, **kwargs)


# What a patched model carries instead of its class's methods.
OVERRIDES = {
    "_validate_generation_mode": check_generation,
    "_prefill": prefill,
    "init_continuous_batching": start_continuous_batching,
}
