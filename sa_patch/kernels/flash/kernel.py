"""The `flash` kernel: what FlashAttention can compute without a mask, as packed sequences of many lengths.

Sliding windows, buckets (each one, sorted by position, is a short causal sequence), own and selected runs, and sinks;
attention to disjoint keys is merged by log-sum-exp. Forward only.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sa_patch.kernels.base import refusal_of_inference_only, refusal_without_code
from sa_patch.kernels.flash.sequences import Requests, Sequences, kept_sequences, run_requests, window_sequences
from sa_patch.kernels.merging import Part, merge
from sa_patch.patterns import Band, Blocks, Pattern

_LARGEST_HEAD, _HEAD_STEP = 256, 8
_NO_MASK = "FlashAttention has no mask for it (FlashAttention-4's mask interface could not be tried): use kernel="


class Flash:
    masks = False
    joins = False

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        reason = (
            unavailable(query)
            or refusal_of_inference_only(query, key, value)
            or refusal_without_code(pattern, Band, Blocks)
        )
        if reason:
            return reason
        if isinstance(pattern, Band) and (pattern.order is not None or pattern.circular):
            return f"keys near by rank in a permuted order are no sequence: {_NO_MASK}'triton' or 'flex'"
        if isinstance(pattern, Blocks) and pattern.local > 1:
            return f"a local window would show keys of the runs twice: {_NO_MASK}'triton' or 'flex'"
        return None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        """Queries among the sinks see all earlier keys; later ones their own part beyond the sinks, and the sinks."""
        assert isinstance(pattern, (Band, Blocks)), "refusal() was not asked"
        sinks, first = pattern.sinks, pattern.first
        early = max(0, min(sinks, pattern.length) - first)
        outputs = []
        if early:
            seen = key[:, :, : first + early], value[:, :, : first + early]
            sequences = window_sequences(query.shape[0], early, first + early, query.device)
            outputs.append(_sequences_part(query[:, :, :early], *seen, sequences, scaling, causal=True)[0])
        if early < pattern.query_len:
            late = query[:, :, early:]
            parts = _own_parts(late, key, value, pattern, early, scaling)
            if sinks:
                sequences = window_sequences(late.shape[0], late.shape[2], sinks, late.device)
                seen = key[:, :, :sinks], value[:, :, :sinks]
                parts.append(_sequences_part(late, *seen, sequences, scaling, causal=False))
            outputs.append(merge(parts)[0].to(query.dtype))
        return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


def unavailable(query: Tensor) -> str | None:
    """Why FlashAttention can't take such tensors; None when it can."""
    if query.device.type != "cuda":
        return f"it needs a GPU, the tensors are on {query.device.type!r}"
    if torch.cuda.get_device_capability(query.device) < (8, 0):
        return f"FlashAttention needs compute capability 8.0, this GPU has {torch.cuda.get_device_capability()}"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"FlashAttention computes in float16 and bfloat16, not {query.dtype}: use kernel='triton' or 'torch'"
    if query.dim() == 4 and (query.shape[-1] > _LARGEST_HEAD or query.shape[-1] % _HEAD_STEP):
        return f"head_dim {query.shape[-1]} is over {_LARGEST_HEAD} or no multiple of {_HEAD_STEP}"
    return None


@lru_cache(maxsize=1)
def _call() -> tuple[Callable[..., Any], bool]:
    """flash-attn's function where it is installed, else PyTorch's: (function, True for flash-attn's)."""
    try:
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]
    except ImportError:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn, False
    return flash_attn_varlen_func, True


def varlen(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, *, causal: bool, window: int = -1
) -> tuple[Tensor, Tensor]:
    """FlashAttention over packed sequences, the one place that calls it. A sequence's queries are its last positions.

    Args:
        query: [queries, heads, head_dim]; key, value: [keys, kv_heads, head_dim]; head_dim contiguous.
        causal: keys after a query are not seen; otherwise all are.
        window: earlier keys that are seen beside the query's own position, -1 for all; only with `causal`.

    Returns:
        (output [queries, heads, head_dim], log-sum-exp [heads, queries]): 0 and -inf for queries without keys,
        undefined for those beyond the last sequence.
    """
    function, is_package = _call()
    packing = sequences.query_ends, sequences.key_ends, sequences.most_queries, sequences.most_keys
    reach = (window, 0) if causal else (-1, -1)
    if is_package:
        output, lse = function(
            *(query, key, value, *packing),
            softmax_scale=scaling,
            causal=causal,
            window_size=reach,
            return_attn_probs=True,
        )[:2]
    else:
        from torch.nn.attention.varlen import AuxRequest

        # In torch 2.11 there is no such argument: it always takes grouped heads.
        grouped = {"enable_gqa": True} if "enable_gqa" in _parameters(function) else {}
        output, lse = function(
            *(query, key, value, *packing),
            return_aux=AuxRequest(lse=True),
            scale=scaling,
            window_size=reach,
            **grouped,
        )
    # For a query without keys FlashAttention-2 returns +inf, FlashAttention-3 -inf.
    return output, lse.masked_fill(lse == torch.inf, -torch.inf)


@lru_cache(maxsize=2)
def _parameters(function) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _own_parts(query: Tensor, key: Tensor, value: Tensor, pattern: Band | Blocks, early: int, scaling: float):
    """Parts of queries beyond the sinks, over the own part's keys beyond the sinks."""
    keys, values = key[:, :, pattern.sinks :], value[:, :, pattern.sinks :]
    if isinstance(pattern, Band):
        # Of a sliding and a local window, the wider one is both.
        reach = max(pattern.width, pattern.local) - 1
        sequences = window_sequences(query.shape[0], query.shape[2], keys.shape[2], query.device)
        return [_sequences_part(query, keys, values, sequences, scaling, causal=True, window=reach)]
    sequences = kept_sequences(pattern, query.shape[0], query.device)
    parts = [_sequences_part(query, keys, values, sequences, scaling, causal=True)]
    if pattern.selected is not None and pattern.selected.shape[-1]:
        chosen = replace(pattern, query_len=query.shape[2], selected=pattern.selected[:, :, early:])
        parts += _selected_parts(query, key, value, chosen, scaling)
    return parts


def _sequences_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Sequences,
    scaling: float,
    *,
    causal: bool,
    window: int = -1,
) -> tuple[Tensor, Tensor]:
    """`varlen` for [batch, heads, tokens, head_dim], with the same sequences in every row of the batch."""
    batch, tokens = query.shape[0], query.shape[2]
    q, k, v = _pack(query, sequences.queries), _pack(key, sequences.keys), _pack(value, sequences.keys)
    output, lse = varlen(q, k, v, sequences, scaling, causal=causal, window=window)
    output, lse = output.unflatten(0, (batch, tokens)), lse.unflatten(1, (batch, tokens)).transpose(0, 1)
    if sequences.slot is not None:
        output, lse = output.index_select(1, sequences.slot), lse.index_select(2, sequences.slot)
    return output.transpose(1, 2), lse


def _pack(tensor: Tensor, index: Tensor | None) -> Tensor:
    """[batch, heads, tokens, head_dim] -> [batch * tokens, heads, head_dim], a view if possible."""
    picked = tensor if index is None else tensor.index_select(2, index)
    picked = picked.transpose(1, 2).flatten(0, 1)
    return picked if picked.stride(-1) == 1 else picked.contiguous()


def _selected_parts(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float) -> list[Part]:
    """A part for each of the k selected runs per query; every run is a sequence without a mask."""
    assert blocks.selected is not None
    requests: Requests = run_requests(blocks, key.shape[1])
    rows = query.reshape(-1, 1, query.shape[-1]).index_select(0, requests.order // blocks.selected.shape[-1])
    k, v = (tensor.reshape(-1, 1, tensor.shape[-1]) for tensor in (key, value))
    found, lse = varlen(rows, k, v, requests.sequences, scaling, causal=False)
    # Pairs without a run come last, beyond all sequences: FlashAttention writes nothing there.
    found = found.masked_fill(~requests.served[:, None, None], 0.0)
    lse = lse[0].masked_fill(~requests.served, -torch.inf)
    output = torch.empty_like(found).index_copy_(0, requests.order, found)
    lse = torch.empty_like(lse).index_copy_(0, requests.order, lse)
    output, lse = output.view(*blocks.selected.shape, -1), lse.view(blocks.selected.shape)
    return list(zip(output.unbind(3), lse.unbind(3), strict=True))
