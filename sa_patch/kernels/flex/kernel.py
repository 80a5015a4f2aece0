"""The `flex` kernel: bands and blocks through compiled FlexAttention, with block masks in closed form.

Forward only. A local window beside a permuted pattern, and selected runs, are passes of their own. On a CPU, where
FlexAttention returns no log-sum-exp, only patterns of one pass run.
"""

from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from sa_patch.kernels.base import refusal_of_inference_only, refusal_without_code
from sa_patch.kernels.flex.block_masks import Blocked, kept_blocks
from sa_patch.kernels.flex.requests import ask
from sa_patch.kernels.merging import Part, merge
from sa_patch.patterns import Band, Blocks, Pattern

_MOST_SHAPES = 64  # kinds of calls that are compiled in a process; more are refused by PyTorch


class Flex:
    masks = False
    joins = False
    compile_seconds = 20.0  # of a pattern that is compiled for the first time

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        return (
            refusal_without_code(pattern, Band, Blocks)
            or refusal_of_inference_only(query, key, value)
            or unavailable(query.device, _passes(pattern) > 1)
        )

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        pattern, device = _without_contained_local(pattern), query.device
        several = _passes(pattern) > 1
        own = kept_blocks(pattern, device, split=pattern.local > 0)
        parts = [_blocked_part(query, key, value, own, scaling, with_lse=several)]
        if pattern.local:
            near = Band(length=pattern.length, query_len=pattern.query_len, sinks=pattern.sinks, width=pattern.local)
            beside = kept_blocks(near, device, split=False, show_sinks=False)
            parts.append(_blocked_part(query, key, value, beside, scaling, with_lse=True))
        if isinstance(pattern, Blocks) and pattern.selected is not None and pattern.selected.shape[-1]:
            parts += _selected_parts(query, key, value, pattern, scaling)
        return merge(parts)[0].to(query.dtype)


def unavailable(device: torch.device, merges: bool) -> str | None:
    """Why compiled FlexAttention can't run on that device; None when it can.

    Args:
        merges: the pattern takes several passes.
    """
    if device.type == "cuda":
        return None if find_spec("triton") else "FlexAttention compiles to Triton (pip install sa-patch[triton])"
    if device.type != "cpu":
        return f"it was not tried on {device.type!r} devices: use kernel='torch'"
    if merges:
        return "on a CPU, FlexAttention returns no log-sum-exp to merge passes with: use kernel='torch'"
    return None


@lru_cache(maxsize=2)
def _compiled(kind: str):
    # fullgraph: what can't be compiled raises; otherwise it would run uncompiled, with n x n scores. On a CPU, inductor
    # of torch 2.13 writes C++ with undeclared names for tensors of changing sizes: there every length is compiled anew.
    return torch.compile(flex_attention, fullgraph=True, dynamic=False if kind == "cpu" else None)


def flexible(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float, *, with_lse: bool) -> Part:
    """Compiled FlexAttention, the one place that calls it.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, k, head_dim].
        with_lse: return the log-sum-exp as well.

    Returns:
        (output [batch, heads, q, head_dim], log-sum-exp [batch, heads, q] or None); 0 and -inf where nothing is seen.
    """
    # FlexDecoding, which FlexAttention takes for few queries, splits keys in ways these masks were not made for.
    options = {"FORCE_USE_FLEX_ATTENTION": True} if query.device.type == "cuda" else None
    settings = {"block_mask": mask, "scale": scaling, "enable_gqa": True, "kernel_options": options}
    run = _compiled(query.device.type)
    with torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES):
        if not with_lse:
            return run(query, key, value, **settings), None
        output, extra = run(query, key, value, **settings, return_aux=AuxRequest(lse=True))
    return output, extra.lse


def _passes(pattern: Pattern) -> int:
    """How many passes a pattern takes, whose results are merged."""
    chosen = isinstance(pattern, Blocks) and pattern.selected is not None and pattern.selected.shape[-1] > 0
    return 1 + chosen + (_without_contained_local(pattern).local > 0)


def _without_contained_local(pattern: Pattern) -> Band | Blocks:
    """The pattern without a local window that adds nothing. Of a sliding and a local window, the wider one is both."""
    assert isinstance(pattern, (Band, Blocks)), "refusal() was not asked"
    if isinstance(pattern, Band) and pattern.order is None:
        return replace(pattern, width=max(pattern.width, pattern.local), local=0)
    return replace(pattern, local=0) if pattern.local <= 1 else pattern


def _blocked_part(
    query: Tensor, key: Tensor, value: Tensor, blocked: Blocked, scaling: float, *, with_lse: bool
) -> Part:
    layout = blocked.layout
    q = query if layout.queries is None else query.index_select(2, layout.queries)
    k, v = (x if layout.keys is None else x.index_select(2, layout.keys) for x in (key, value))
    output, lse = flexible(q, k, v, blocked.mask(), scaling, with_lse=with_lse)
    if layout.slot is None:
        return output, lse
    return output.index_select(2, layout.slot), None if lse is None else lse.index_select(2, layout.slot)


def _selected_parts(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float) -> list[Part]:
    """A part for each of the k selected runs per query."""
    assert blocks.selected is not None
    asked, shape = ask(blocks, key.shape[1]), blocks.selected.shape
    q = query.reshape(-1, query.shape[-1]).index_select(0, asked.rows)[None, None]
    k, v = (x.reshape(1, 1, -1, x.shape[-1]) for x in (key, value))
    found, found_lse = flexible(q, k, v, asked.mask, scaling, with_lse=True)
    assert found_lse is not None
    # One row more, for slots that hold no pair.
    output = found.new_zeros(blocks.selected.numel() + 1, query.shape[-1]).index_copy_(0, asked.target, found[0, 0])
    lse = found_lse.new_full((output.shape[0],), -torch.inf).index_copy_(0, asked.target, found_lse[0, 0])
    output, lse = output[:-1].view(*shape, -1), lse[:-1].view(shape)
    return list(zip(output.unbind(3), lse.unbind(3), strict=True))
