"""What `--attention` stands for: a fresh model, and the patch it trains with."""

from __future__ import annotations

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainerCallback

import sa_patch
from sa_patch.integration.gates import TrainingSteps
from sa_patch.variants.base import Variant
from sa_patch.variants.gated import at_step

from .settings import Run, Settings


def new_model(settings: Settings, seed: int, end: int, vocab: int) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights: the same ones for every attention of a seed."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=settings.hidden,
        intermediate_size=settings.inner,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.head_dim,
        max_position_embeddings=max(2048, settings.length),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    return Qwen3ForCausalLM(config)


def patched(model, run: Run, resample: str, initial: float = 0.5) -> sa_patch.Patch | None:
    """Patch a model as a run trains it; None for full attention.

    The permutations of the runs with one seed are alike, those of different seeds are not. Gates begin at `initial`.
    """
    name = run.attention.removesuffix("-sink")
    sinks = int(name != run.attention)
    if name == "full":
        return None
    assert run.window is not None
    if name in ("gated-swa", "swa-scaled", "swa-half"):
        patch = sa_patch.gate(model, 2 * run.window, seed=run.seed, resample="never", initial=initial)
        _keep_the_window_only(model, name)
        return patch
    if name == "gated":
        return sa_patch.gate(model, run.window, seed=run.seed, resample=resample, initial=initial, sinks=sinks)
    return sa_patch.apply(model, name, run.window, seed=run.seed, sinks=sinks)


def redrawn(patch: sa_patch.Patch | None) -> Variant | None:
    """The variant whose random keys training has to draw anew, or None: gated attention draws by itself."""
    seeded = patch is not None and patch.variant.seeded and patch.variant.name != "gated"
    return patch.variant if seeded else None


def _keep_the_window_only(model: torch.nn.Module, name: str) -> None:
    """Hold the gates of sa at exactly zero: what is left is a sliding window of half the keys, and its gates.

    Those are learned (gated-swa), are one learned number per head (swa-scaled), or stay where they began (swa-half).
    """
    for path, gate in model.named_modules():
        if path.endswith(".gate_sa"):
            torch.nn.init.constant_(gate.bias, -torch.inf)
            gate.requires_grad_(False)
        elif path.endswith(".gate_swa") and name != "gated-swa":
            torch.nn.init.zeros_(gate.weight).requires_grad_(False)
            gate.bias.requires_grad_(name == "swa-scaled")


class SameDraw(TrainerCallback):
    """Gated attention draws anew in every forward pass; here all passes of a step draw the same."""

    def __init__(self, model) -> None:
        self.steps = [module for module in model.modules() if isinstance(module, TrainingSteps)]

    def on_step_begin(self, args, state, control, **_) -> None:
        for steps in self.steps:
            steps.set_extra_state(torch.tensor(state.global_step))

    on_substep_end = on_step_begin


class Resample(TrainerCallback):
    """Gives a variant other random keys in every step."""

    def __init__(self, model, variant: Variant) -> None:
        self.model, self.variant = model, variant

    def on_step_begin(self, args, state, control, **_) -> None:
        sa_patch.apply(self.model, variant=at_step(self.variant, state.global_step + 1))

    def on_train_end(self, args, state, control, **_) -> None:
        sa_patch.apply(self.model, variant=self.variant)
