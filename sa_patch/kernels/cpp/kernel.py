"""The `cpp` kernel: bands, runs and chosen blocks in one pass on a CPU, by a C++ program compiled on first use.

It computes in float32 and leaves out the future, which a mask over tiles can't: a permuted band costs little more than
the pairs it shows. A local window beside an order of its own is a second pass.
"""

import ctypes
from dataclasses import replace

import torch
from torch import Tensor

from sa_patch.kept import KEPT
from sa_patch.kernels.base import needs_gradients, refusal_without_code
from sa_patch.kernels.cpp.library import Call, Strided, library, missing
from sa_patch.kernels.dense import causal
from sa_patch.kernels.merging import Part, merge
from sa_patch.patterns import Band, Blocks, Pattern, Pieces, Selected
from sa_patch.randomness import inverse

_DTYPES = (torch.float32, torch.bfloat16)
_RUN_ROWS = 256  # queries of a run that are computed together


class Cpp:
    masks = False
    joins = True

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        if isinstance(pattern, Pieces):
            return next((why for one in pattern.pieces if (why := self._refusal_to_join(one, query, key, value))), None)
        without_code = refusal_without_code(pattern, Band, Blocks, Selected)
        if without_code:
            return without_code
        if isinstance(pattern, Selected) and pattern.pooled:
            return "it has no code for heads that choose different numbers of blocks: use kernel='torch'"
        if isinstance(pattern, Band) and pattern.order is None and pattern.circular:
            return "it has no code for a ring of positions: use kernel='torch'"
        return _refusal_of_tensors(query, key, value) or missing()

    def _refusal_to_join(self, piece: Pattern, *heads: Tensor) -> str | None:
        if piece.tail:
            return "pieces with a dense tail are computed one by one"
        return None if piece.covers_all else self.refusal(piece, *heads)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        query, key, value = (_addressed(one) for one in (query, key, value))
        output = _empty(query, query.dtype)
        for piece in pattern.pieces if isinstance(pattern, Pieces) else [pattern]:
            rows = slice(piece.first - pattern.first, piece.length - pattern.first)
            seen = key[:, :, : piece.length], value[:, :, : piece.length]
            _write(output[:, :, rows], query[:, :, rows], *seen, piece, scaling)
        return output


def _refusal_of_tensors(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    if query.device.type != "cpu":
        return "it runs on a CPU: use kernel='triton' or 'torch'"
    if query.dtype not in _DTYPES:
        return f"it has no code for {str(query.dtype).removeprefix('torch.')}: use float32 or bfloat16"
    if not query.dtype == key.dtype == value.dtype or not query.shape[-1:] == key.shape[-1:] == value.shape[-1:]:
        return "queries, keys and values have to be of one dtype and head_dim: use kernel='torch'"
    if needs_gradients(query, key, value):
        return "it has no gradients: use kernel='torch', or torch.no_grad()"
    return None


def _write(output: Tensor, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> None:
    """Put attention to the pattern's keys into the output."""
    if isinstance(pattern, Band) and pattern.order is None:  # the nearest keys, one window
        pattern = replace(pattern, width=max(pattern.width, pattern.local), local=0)
    if pattern.covers_all:
        output.copy_(causal(query, key, value, scaling))
    elif isinstance(pattern, Blocks) and pattern.selected is not None and output.dtype != torch.float32:
        wide = _empty(query, torch.float32)
        _write(wide, query, key, value, pattern, scaling)
        output.copy_(wide)
    elif isinstance(pattern, Selected) or not pattern.local:
        _run(output, None, query, key, value, pattern, scaling)
    else:
        near = Band(length=pattern.length, query_len=pattern.query_len, width=pattern.local, sinks=pattern.sinks)
        output.copy_(merge([_part(query, key, value, one, scaling) for one in (pattern, near)])[0])


def _part(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Part:
    """Attention to a pattern's own keys without those that its local window shows, sinks included."""
    output, lse = _empty(query, torch.float32), query.new_empty(query.shape[:3], dtype=torch.float32)
    _run(output, lse, query, key, value, pattern, scaling)
    return output, lse


def _addressed(tensor: Tensor) -> Tensor:
    """The tensor, as it lies in memory where its last dimension is contiguous."""
    tensor = tensor.resolve_neg()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _empty(query: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for the output, all heads of a token side by side, as models join them."""
    batch, heads, query_len, head_dim = query.shape
    return query.new_empty(batch, query_len, heads, head_dim, dtype=dtype).transpose(1, 2)


def _run(
    output: Tensor, lse: Tensor | None, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float
) -> None:
    """Run the program on a pattern's own keys and sinks."""
    name, arguments = _function(pattern, query.device)
    call = Call(
        *(_strided(one) for one in (query, key, value, output)),
        _address(lse),
        *(query.shape[0], query.shape[1], key.shape[1], query.shape[3], pattern.first, pattern.length),
        *(torch.get_num_threads(), query.dtype == torch.bfloat16, output.dtype == torch.bfloat16),
        scaling,
    )
    plain = [ctypes.c_int64(one) if isinstance(one, int) else ctypes.c_void_p(_address(one)) for one in arguments]
    if getattr(library(), name)(ctypes.byref(call), *plain):  # the interpreter runs other threads meanwhile
        raise MemoryError(f"kernel 'cpp' has no memory left for the tiles of {query.shape[2]} queries")


def _function(pattern: Pattern, device: torch.device) -> tuple[str, tuple[Tensor | int | None, ...]]:
    """The program's function that computes a pattern, and what it is told after the call, in its own order."""
    sinks, apart = pattern.sinks, pattern.local
    if isinstance(pattern, Band):
        ranks = _ranks(pattern, device)
        return "band", (*ranks, pattern.horizon, pattern.width, pattern.circular, sinks, apart, _rows(pattern))
    assert isinstance(pattern, (Blocks, Selected)), "refusal() was not asked"
    size, chosen = pattern.block_size, pattern.selected
    if isinstance(pattern, Selected):
        assert chosen is not None, "the content was not looked at"
        choosers, most = chosen.shape[1], chosen.shape[3]
        sizes = size, pattern.query_block, pattern.whole, sinks, max(pattern.local, 1)
        return "selected", (chosen.long().contiguous(), choosers, most, *sizes)
    if chosen is not None:
        return "chosen_runs", (chosen.long().contiguous(), chosen.shape[3], size, sinks, apart)
    order = None if pattern.order is None else pattern.order.contiguous()
    return "runs", (order, pattern.length if order is None else order.numel(), size, sinks, apart, _RUN_ROWS)


def _rows(band: Band) -> int:
    """Queries that are computed together: few where their ranks are far apart, or they need keys from everywhere."""
    if band.order is None:
        return 32
    close = 2 * band.width * band.query_len // band.horizon
    return max(1, min(64 if band.width < 256 else 96, 1 << close.bit_length() >> 1))


def _ranks(band: Band, device: torch.device) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The order, the rank of every token (int32), and the queries by rank (int32)."""
    order = band.order
    if order is None:
        return None, None, None

    # Generated tokens have patterns of their own, and one order: what is kept depends on that alone.
    kept = ("cpp ranks", band.source)
    rank = _int_ranks(order) if band.source is None else KEPT.get(kept, device, lambda: _int_ranks(order))
    if band.query_len == 1:
        return order.contiguous(), rank, torch.tensor([band.first], dtype=torch.int32, device=device)
    return order.contiguous(), rank, order[(order >= band.first) & (order < band.length)].int()


def _int_ranks(order: Tensor) -> Tensor:
    return inverse(order).int()


def _strided(tensor: Tensor) -> Strided:
    return Strided(tensor.data_ptr(), *tensor.stride()[:3])


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
