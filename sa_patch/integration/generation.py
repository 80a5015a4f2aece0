"""What a patched model's `generate` does differently: it says what is a prompt, and refuses what would be wrong."""

from typing import Any

from sa_patch.integration.state import state


def check_generation(model: Any, mode: Any, config: Any, options: Any) -> None:
    """`generate`'s own check, and ours: what would be computed wrong is refused before anything runs."""
    held = state(model)
    if held is not None and held.overridden is None and not held.variant.always_dense:
        name, variant = getattr(mode, "value", mode), held.variant
        reason = variant.whole_prompt_reason()
        if name in ("assisted_generation", "dola_generation") and (reason or variant.decode == "full"):
            raise NotImplementedError(
                f"{name} (assistant models, prompt lookup) reads guesses together with the prompt, so it needs "
                f"decode='sparse', got {variant.decode!r}, and keys that no later token changes"
                + (f", but {reason}" if reason else "")
                + ". Change the options, generate without it, or restore the patch"
            )
        if getattr(config, "prefill_chunk_size", None) and reason:
            raise NotImplementedError(
                f"prefill_chunk_size={config.prefill_chunk_size} cuts the prompt, but {reason}. Leave one of them out, "
                "or restore the patch"
            )
    type(model)._validate_generation_mode(model, mode, config, options)


def prefill(model: Any, *args: Any, **kwargs: Any) -> Any:
    """`generate`'s own prefill; while it runs, even a chunk of one token belongs to the prompt."""
    held = state(model)
    if held is None:
        return type(model)._prefill(model, *args, **kwargs)
    held.reads_prompt = True
    try:
        return type(model)._prefill(model, *args, **kwargs)
    finally:
        held.reads_prompt = False
