"""What every layer of an imagined model runs: a variant or a plan, a length, a depth and a seed, without any model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sa_patch.analysis.reach import Together
from sa_patch.forward import is_dense
from sa_patch.geometry import Group
from sa_patch.patterns import Pattern
from sa_patch.plan import Plan
from sa_patch.variants.base import CPU, Variant

LONGEST = 1 << 20  # tokens: beyond it nothing here was tried


def check(variant: Variant | Plan, length: int, num_layers: int, seeds: Sequence[int] = (0,)) -> None:
    """Refuse what no analysis can be made of.

    Raises:
        ValueError: for arguments out of range, a plan of another depth, or an option that asks for a device.
    """
    if not isinstance(variant, (Variant, Plan)):
        raise ValueError(
            f"variant must be a sa_patch Variant or Plan, got {type(variant).__name__}: see sa_patch.variant(...)"
        )
    for name, value, most in (("length", length, LONGEST), ("num_layers", num_layers, 10_000)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{name} must be a whole number from 1 to {most:,}, got {value!r}")
    if not seeds or any(isinstance(seed, bool) or not isinstance(seed, int) for seed in seeds):
        raise ValueError(f"seeds must be whole numbers, at least one, got {list(seeds)!r}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds holds a number twice: {list(seeds)}")
    if isinstance(variant, Plan) and len(variant.variants) != num_layers:
        raise ValueError(
            f"the plan has {len(variant.variants)} layers and num_layers={num_layers} was asked for: pass "
            f"num_layers={len(variant.variants)}"
        )
    for one in dict.fromkeys(variants_of(variant, num_layers)):
        for layer in one.dense_layers:
            if not -num_layers <= layer < num_layers:
                raise ValueError(f"dense_layers has {layer}, but the stack has layers 0..{num_layers - 1}")
        if one.dense_below == "crossover":
            raise ValueError(
                "dense_below='crossover' depends on what was measured on a device, and there is none here: give a "
                "number of tokens"
            )


def variants_of(variant: Variant | Plan, num_layers: int) -> tuple[Variant, ...]:
    """One variant per layer."""
    return variant.variants if isinstance(variant, Plan) else (variant,) * num_layers


def is_random(variant: Variant | Plan) -> bool:
    """Whether a seed decides anything."""
    return any(one.seeded for one in variants_of(variant, 1))


def patterns(variant: Variant | Plan, length: int, num_layers: int, seed: int) -> Iterator[Pattern]:
    """The pattern of every layer while a prompt of `length` tokens is read, the first layer first.

    Raises:
        ValueError: for a variant whose keys depend on the content or on the head, or that refuses this length.
    """
    group = Group(length, length, CPU)
    for layer, one in enumerate(variants_of(variant, num_layers)):
        if one.head_dependent == "number":
            raise ValueError(
                f"layer {layer} shows every kv head other keys (heads='each'), and here a layer has one pattern: use "
                "heads='shared', or sa_patch.analysis.prompt_coverage(patch, input_ids)"
            )
        seeded = replace(one, seed=seed) if one.seeded else one
        try:
            found = pattern_of(seeded, group, layer, num_layers, torch.float32)
        except ValueError as error:
            raise ValueError(
                f"layer {layer} has no pattern without a prompt: {error}. Where the keys depend on the content, "
                "sa_patch.analysis.prompt_coverage(patch, input_ids) measures on a prompt"
            ) from error
        yield found


def pattern_of(
    variant: Variant,
    group: Group,
    layer: int,
    num_layers: int,
    dtype: torch.dtype,
    query: Tensor | None = None,
    key: Tensor | None = None,
) -> Pattern:
    """What a layer shows, all its branches together, dense layers and short prompts as what they are.

    Args:
        query: [rows, heads, query_len, head_dim] and key: [rows, kv_heads, length, head_dim], where content decides.
    """
    if is_dense(variant, group.length, layer, num_layers, group.device, dtype):
        return variant.dense(group)
    return Together.of([branch.sparse_pattern(group, layer, query, key) for branch in variant.branches])


def distinct_patterns(variant: Variant | Plan, length: int, num_layers: int, seed: int) -> Iterator[Pattern]:
    """`patterns`, where layers that are equal for certain come once."""
    seen: set[Variant] = set()
    for one, pattern in zip(variants_of(variant, num_layers), patterns(variant, length, num_layers, seed), strict=True):
        if one.seeded or one.dense_layers or one not in seen:
            seen.add(one)
            yield pattern
