"""The `flex` kernel: every band and block pattern through compiled FlexAttention, with block masks in closed form.

Forward only. A local window beside a permuted pattern, moba's selected runs and dense tails are passes of their own.
On a CPU, where FlexAttention returns no log-sum-exp, only patterns of one pass run. Imports torch only.
"""

from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from sa_patch.kernels.dense import causal
from sa_patch.kernels.flex.block_masks import Blocked, kept_blocks
from sa_patch.kernels.flex.requests import ask
from sa_patch.kernels.merging import Part, merge
from sa_patch.patterns import Band, Blocks, Pattern

_MOST_SHAPES = 64  # kinds of calls that are compiled in a process; more are refused by PyTorch


class Flex:
    name = "flex"

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        if pattern.covers_all:
            return None
        if not isinstance(pattern, (Band, Blocks)):
            return f"it has no code for {type(pattern).__name__} patterns"
        if query.dtype == torch.float64:
            return "it computes in float32: use kernel='torch' for float64"
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
            return "it has no gradients: use kernel='torch', or torch.no_grad()"
        return unavailable(query.device, _parts(pattern) > 1)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        if pattern.covers_all:
            return causal(query, key, value, scaling)
        assert isinstance(pattern, (Band, Blocks)), "refusal() was not asked"
        output = _sparse_rows(query, key, value, pattern, scaling)
        if pattern.tail:
            last = causal(query[:, :, -pattern.tail :], key, value, scaling)
            output = torch.cat([output[:, :, : -pattern.tail], last], dim=2)
        return output


def unavailable(device: torch.device, merges: bool) -> str | None:
    """Why FlexAttention can't run on that device; None when it can. Uncompiled it would take n x n, so it never is."""
    if device.type == "cuda":
        return None if find_spec("triton") else "FlexAttention compiles to Triton (pip install sa-patch[triton])"
    if device.type != "cpu":
        return f"it was not tried on {device.type!r} devices: use kernel='torch'"
    if merges:
        return "on a CPU, FlexAttention returns no log-sum-exp to merge passes with: use kernel='torch'"
    return None


@lru_cache(maxsize=2)
def _compiled(kind: str):
    # fullgraph: what can't be compiled raises; it would run unfused otherwise, n x n. On a CPU, inductor of torch 2.13
    # writes C++ with undeclared names for tensors of changing sizes: it compiles every length anew there.
    return torch.compile(flex_attention, fullgraph=True, dynamic=False if kind == "cpu" else None)


def flexible(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float, *, part: bool
) -> tuple[Tensor, Tensor | None]:
    """Compiled FlexAttention, the one place that calls it.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, k, head_dim].
        part: return the log-sum-exp as well.

    Returns:
        (output [batch, heads, q, head_dim], log-sum-exp [batch, heads, q] or None); 0 and -inf where nothing is seen.
    """
    # Its other kernel, for few queries, splits keys in ways these masks were not made for.
    options = {"FORCE_USE_FLEX_ATTENTION": True} if query.device.type == "cuda" else None
    settings = {"block_mask": mask, "scale": scaling, "enable_gqa": True, "kernel_options": options}
    run = _compiled(query.device.type)
    with torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES):
        if not part:
            return run(query, key, value, **settings), None
        output, extra = run(query, key, value, **settings, return_aux=AuxRequest(lse=True))
    return output, extra.lse


def _parts(pattern: Band | Blocks) -> int:
    """Passes whose results are merged."""
    chosen = isinstance(pattern, Blocks) and pattern.selected is not None and pattern.selected.shape[-1] > 0
    return 1 + chosen + (_settled(pattern).local > 0)


def _settled(pattern: Band | Blocks) -> Band | Blocks:
    """Without a local window that adds nothing; two windows are the wider one."""
    if isinstance(pattern, Band) and pattern.order is None:
        return replace(pattern, width=max(pattern.width, pattern.local), local=0)
    return replace(pattern, local=0) if pattern.local <= 1 else pattern


def _sparse_rows(query: Tensor, key: Tensor, value: Tensor, pattern: Band | Blocks, scaling: float) -> Tensor:
    pattern = _settled(pattern)
    several, device = _parts(pattern) > 1, query.device
    blocked = kept_blocks(pattern, device, split=pattern.local > 0)
    parts = [_blocked_part(query, key, value, blocked, scaling, part=several)]
    if pattern.local:
        near = Band(length=pattern.length, query_len=pattern.query_len, sinks=pattern.sinks, width=pattern.local)
        beside = kept_blocks(near, device, split=False, show_sinks=False)
        parts.append(_blocked_part(query, key, value, beside, scaling, part=True))
    if isinstance(pattern, Blocks) and pattern.selected is not None and pattern.selected.shape[-1]:
        parts += _selected_parts(query, key, value, pattern, scaling)
    return merge(parts)[0].to(query.dtype)


def _blocked_part(query: Tensor, key: Tensor, value: Tensor, blocked: Blocked, scaling: float, *, part: bool) -> Part:
    layout = blocked.layout
    q = query if layout.queries is None else query.index_select(2, layout.queries)
    k, v = (x if layout.keys is None else x.index_select(2, layout.keys) for x in (key, value))
    output, lse = flexible(q, k, v, blocked.mask(), scaling, part=part)
    if layout.place is None:
        return output, lse
    return output.index_select(2, layout.place), None if lse is None else lse.index_select(2, layout.place)


def _selected_parts(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float) -> list[Part]:
    """A part per selected run, from queries collected by the run they asked for."""
    assert blocks.selected is not None
    asked, shape = ask(blocks, key.shape[1]), blocks.selected.shape
    q = query.reshape(-1, query.shape[-1]).index_select(0, asked.rows)[None, None]
    k, v = (x.reshape(1, 1, -1, x.shape[-1]) for x in (key, value))
    found, found_lse = flexible(q, k, v, asked.mask, scaling, part=True)
    assert found_lse is not None
    # One row more, for slots that hold no pair.
    output = found.new_zeros(blocks.selected.numel() + 1, query.shape[-1]).index_copy_(0, asked.target, found[0, 0])
    lse = found_lse.new_full((output.shape[0],), -torch.inf).index_copy_(0, asked.target, found_lse[0, 0])
    output, lse = output[:-1].view(*shape, -1), lse[:-1].view(shape)
    return list(zip(output.unbind(3), lse.unbind(3), strict=True))
