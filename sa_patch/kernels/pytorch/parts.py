"""Attention to some of the keys with its log-sum-exp, which `merge` needs, and its gradients.

Computed in float32 at least. Belongs to the `torch` kernel.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sa_patch.kernels.dense import fused
from sa_patch.kernels.merging import Part, wide

# Entries of a mask or of scores held at once: 8 MiB of float32, so that a chunk stays near the caches of a CPU.
CHUNK_ENTRIES = 1 << 21


@dataclass(frozen=True, eq=False)
class Record:
    """What the gradients of a part are computed from, and what they are added to.

    Attributes:
        query, output, grad: [batch, heads, q, head_dim]; output is attention to all keys, grad its gradient.
        key, value: [batch, kv_heads, n, head_dim].
        lse: log-sum-exp of the scores of all keys, [batch, heads, q]; None where a part shows all of a query's keys.
        query_grad, key_grad, value_grad: like query, key and value, in float32 at least.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    grad: Tensor
    lse: Tensor | None
    query_grad: Tensor
    key_grad: Tensor
    value_grad: Tensor
    scaling: float

    def rows(self) -> Iterator["Record"]:
        """A record of every sequence; they are added to the same gradients."""
        for row in range(self.query.shape[0]):
            own = {name: x[row : row + 1] for name, x in vars(self).items() if isinstance(x, Tensor)}
            yield replace(self, **own)

    def stretch(self, queries: slice, length: int) -> "Record":
        """The record of some queries and the first `length` keys; they are added to the same gradients."""
        keys = {name: x[:, :, :length] for name, x in vars(self).items() if name.startswith(("key", "value"))}
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor) and name not in keys}
        return replace(self, **keys, **{name: x[:, :, queries] for name, x in tensors.items()})


def empty_part(query: Tensor, *, with_lse: bool, into: Tensor | None = None) -> Part:
    """Room for a part of these queries, `into` if given; float32 at least where it has a log-sum-exp.

    All heads of a token lie side by side: a token's results are written in one stretch, and nothing is copied where the
    model joins the heads.
    """
    batch, heads, query_len, head_dim = query.shape
    dtype = wide(query) if with_lse else query.dtype
    output = into
    if output is None:
        output = query.new_empty(batch, query_len, heads, head_dim, dtype=dtype).transpose(1, 2)
    return output, query.new_empty(batch, heads, query_len, dtype=dtype) if with_lse else None


def select_tokens(tensor: Tensor, index: Tensor) -> Tensor:
    """Some tokens of [batch, heads, tokens, head_dim], laid out as the tensor is.

    On a CPU, rows of a matrix are gathered two to three times as fast as along a dimension inside a tensor.
    """
    batch, heads, _, head_dim = tensor.shape
    if tensor.transpose(1, 2).is_contiguous():  # as models give queries: all heads of a token side by side
        return tensor.transpose(1, 2).index_select(1, index).transpose(1, 2)
    if tensor.device.type != "cpu" or tensor[0].stride()[1:] != (head_dim, 1) or tensor.stride(1) % head_dim:
        return tensor.index_select(2, index)
    # The first tokens of a longer sequence, too: heads are `apart` rows from each other.
    apart = tensor.stride(1) // head_dim
    head = apart * torch.arange(heads, device=tensor.device)[:, None]
    rows = (heads - 1) * apart + tensor.shape[2]
    place = (head + index).flatten()
    found = [one.as_strided((rows, head_dim), (head_dim, 1)).index_select(0, place) for one in tensor]
    return (found[0][None] if batch == 1 else torch.stack(found)).view(batch, heads, -1, head_dim)


def has_operator(query: Tensor, key: Tensor) -> bool:
    """Whether PyTorch's flash attention for CPUs computes this part. It gives 0 for a single key that is NaN."""
    return query.device.type == "cpu" and key.shape[2] > 1


def masked_part(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, *, all_see: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention of tiles of queries to tiles of keys: every tile is computed by itself.

    Args:
        query: [tiles, heads, q, head_dim]; key, value: [tiles, kv_heads, k, head_dim].
        mask: bool, broadcastable to [tiles, 1, q, k], True where visible; None shows everything.
        all_see: every query sees some key.

    Returns:
        (output [tiles, heads, q, head_dim], log-sum-exp [tiles, heads, q]) in float32, or float64 for such tensors; 0
        and -inf where a query sees nothing.
    """
    if has_operator(query, key):
        return _masked_part_on_cpu(query, key, value, mask, scaling, all_see)
    exact = wide(query)
    grouped = query.unflatten(1, (key.shape[1], -1)).to(exact)
    scores = grouped @ key[:, :, None].to(exact).transpose(-1, -2) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(-3), -torch.inf)
    lse = scores.logsumexp(dim=-1)
    # A row without keys has lse -inf: subtracting 0 instead keeps its weights at exp(-inf) = 0.
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    return (weights @ value[:, :, None].to(exact)).flatten(1, 2), lse.flatten(1, 2)


def _masked_part_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, all_see: bool
) -> tuple[Tensor, Tensor]:
    """`masked_part` through PyTorch's flash attention operator for CPUs.

    The public `scaled_dot_product_attention` calls the same operator, but does not return its log-sum-exp.
    """
    bias = _bias(query, key, mask)
    query, key, value = _dense_heads(query, key, value)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, lse = flash(query, key, value, 0.0, False, attn_mask=bias, scale=scaling)
    lse = lse.to(wide(query))
    if mask is not None and not all_see:
        lse = lse.masked_fill(~mask.any(dim=-1), -torch.inf)
    return output.to(lse.dtype), lse


def _bias(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask as PyTorch's CPU operators take it: added to scores."""
    if mask is None:
        return None
    zero = torch.zeros((), dtype=query.dtype)
    bias = torch.where(mask, zero, zero - torch.inf)
    return bias.expand(query.shape[0], 1, query.shape[2], key.shape[2])


def _dense_heads(*tensors: Tensor) -> list[Tensor]:
    """PyTorch's CPU operators read head_dim as if it were contiguous; the public functions make sure that it is."""
    return [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]


def masked_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    grad: Tensor,
    output: Tensor,
    lse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What tiles of keys contribute to the gradients, when the output is attention to these keys and to others.

    With weights P = exp(scores - lse), the gradients of scores are P (grad value^T - sum(grad output)), for any part of
    the keys (Dao 2022, arXiv 2205.14135, appendix B.2).

    Args:
        query, key, value, mask: as in `masked_part`.
        grad, output: of all keys, [tiles, heads, q, head_dim].
        lse: of all keys, [tiles, heads, q], finite; None where these keys are all there are, which is computed again.

    Returns:
        Gradients of query, key and value, in their shapes; where `grad` is 0, nothing is contributed.
    """
    if lse is None:
        again = torch.func.vjp(lambda q, k, v: fused(q, k, v, scaling, mask), query, key, value)
        return again[1](grad)
    if has_operator(query, key):
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        heads = _dense_heads(grad, query, key, value, output)
        return backward(*heads, lse, 0.0, False, attn_mask=_bias(query, key, mask), scale=scaling)
    exact, groups = wide(query), (key.shape[1], -1)
    # Queries of all heads that share a kv head are rows of one product: it sums over the heads.
    rows, grad, output = (x.to(exact).unflatten(1, groups).flatten(2, 3) for x in (query, grad, output))
    keys, values = key.to(exact), value.to(exact)
    scores = rows @ keys.transpose(-1, -2) * scaling - lse.unflatten(1, groups).flatten(2)[..., None]
    if mask is not None:
        shown = mask[:, :, None].expand(-1, -1, query.shape[1] // key.shape[1], -1, -1).flatten(2, 3)
        scores = scores.masked_fill(~shown, -torch.inf)
    weights = scores.exp()
    value_grad = weights.transpose(-1, -2) @ grad
    scores_grad = weights * (grad @ values.transpose(-1, -2) - (grad * output).sum(-1, keepdim=True)) * scaling
    query_grad = (scores_grad @ keys).unflatten(2, (-1, query.shape[2])).flatten(1, 2)
    return query_grad, scores_grad.transpose(-1, -2) @ rows, value_grad


def sinks_part(query: Tensor, key: Tensor, value: Tensor, sinks: int, scaling: float) -> Part:
    """Causal attention of every query to the first `sinks` keys; the queries are the last positions of the keys.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim].

    Returns:
        (output [batch, heads, q, head_dim], log-sum-exp [batch, heads, q])
    """
    near = key[:, :, :sinks], value[:, :, :sinks]
    parts = [masked_part(query[:, :, rows], *near, mask, scaling) for rows, mask in _sink_steps(query, key, sinks)]
    output, lse = (torch.cat(pieces, dim=2) for pieces in zip(*parts, strict=True))
    return output, lse


def sinks_gradients(record: Record, sinks: int) -> None:
    """Add the gradients of `sinks_part`."""
    near = record.key[:, :, :sinks], record.value[:, :, :sinks]
    for rows, mask in _sink_steps(record.query, record.key, sinks):
        grad, output = record.grad[:, :, rows], record.output[:, :, rows]
        lse = None if record.lse is None else record.lse[:, :, rows]
        found = masked_gradients(record.query[:, :, rows], *near, mask, record.scaling, grad, output, lse)
        record.query_grad[:, :, rows] += found[0]
        record.key_grad[:, :, :sinks] += found[1]
        record.value_grad[:, :, :sinks] += found[2]


def _sink_steps(query: Tensor, key: Tensor, sinks: int) -> Iterator[tuple[slice, Tensor]]:
    """Some queries at a time, and which sinks they see: bool [q, sinks]."""
    query_len, length = query.shape[2], key.shape[2]
    column = torch.arange(min(sinks, length), device=query.device)
    step = max(1, CHUNK_ENTRIES // (query.shape[0] * query.shape[1] * sinks))
    for start in range(0, query_len, step):
        stop = min(start + step, query_len)
        row = torch.arange(start, stop, device=query.device)[:, None] + length - query_len
        yield slice(start, stop), (column <= row)[None, None]
