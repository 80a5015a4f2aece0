"""State: one patch of one model, and where to find it."""

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sa_patch.forward import Layer
from sa_patch.integration.gates import Gates
from sa_patch.plan import Plan

NAME = "sa_patch"  # of the attention implementation

UNPATCHED = (
    "this model's config names sa_patch as the attention implementation, but the model carries no patch: it was built "
    "from a patched model's config, or the name was set by hand. Build it with "
    "from_config(copy.deepcopy(config), attn_implementation='sdpa'); or, if it has a config of its own, call "
    "model.set_attn_implementation('sdpa'); or restore the patch of the model whose config it shares. Then it is a "
    "plain model that sa_patch.apply can patch"
)


@dataclass(eq=False)
class State:
    """One patch of one model. Its layers hold it, so every wrapper and copy of the model finds it there."""

    plan: Plan
    kernel: str
    layers: tuple[Layer, ...]
    original_config: Any = None
    patched_config: Any = None
    snapshot: dict[str, object] = field(default_factory=dict)  # the original config's values when it was copied
    prompt_threads: set[int] = field(default_factory=set)  # those in which generate is at its prompt
    warned_of: str | None = None  # the implementation set behind the patch that its user was warned of
    # Called by every layer of an eager call with (layer, query, key, value, scaling), heads before any grouping.
    observer: Callable[[int, Tensor, Tensor, Tensor, float], None] | None = None
    gates: Gates | None = None  # of a gated model
    hides_gates: bool = False  # whether it replaced a gated patch, whose gates are out of the model meanwhile
    short_warned: bool = False  # whether its user was warned of a prompt that is not longer than the window

    @property
    def reads_prompt(self) -> bool:
        """True while generate, in this thread, is at its prompt: even a single token on a cache belongs to it."""
        if torch.compiler.is_compiling():
            return bool(self.prompt_threads)
        return threading.get_ident() in self.prompt_threads

    def warn_if_short(self, length: int) -> None:
        """Warn, once per patch, of a prompt of `length` tokens that the window covers: it is full attention.

        Nothing is said where the options ask for full attention on short prompts.
        """
        sparse = [variant for variant in self.plan.distinct if not variant.always_dense]
        branches = [branch for variant in sparse for branch in variant.branches]
        if self.short_warned or any(length > branch.window_at(length) or branch.dense_below for branch in branches):
            return
        if not sparse:
            return
        self.short_warned = True
        window, name = min(branch.window_at(length) for branch in branches), " and ".join(v.name for v in sparse)
        warnings.warn(
            f"the prompt has {length} tokens, not more than window={window}: {name!r} is full attention "
            "there, so nothing is saved and nothing is shown. Use a smaller window or a longer prompt (said once per "
            "patch)",
            stacklevel=2,
        )

    @property
    def overridden(self) -> str | None:
        """The attention implementation that somebody set behind the patch, or None."""
        found = self.patched_config._attn_implementation
        return None if found == NAME else str(found)


def state(model: nn.Module) -> State | None:
    """The patch that a model, or what a wrapper holds, carries; None when there is none."""
    return next((module.__dict__["_sa_patch"] for module in model.modules() if "_sa_patch" in module.__dict__), None)
