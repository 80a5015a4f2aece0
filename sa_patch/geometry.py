"""One forward call's sequences: which tokens are real, how long each sequence is, which of them can run together.

Padding never reaches a pattern or a kernel: real tokens are gathered into groups of equally long sequences and results
are scattered back. Packed documents are sequences of their own. Imports torch only.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

# Bits of an `encode`d column: two flags; the bits from DOCUMENT upwards hold the number of its document.
REAL, NEW, DOCUMENT = 1, 2, 4


@dataclass(frozen=True)
class Group:
    """Sequences of one shape.

    Attributes:
        length: keys per sequence, n.
        query_len: queries per sequence, q; they are at positions n - q .. n - 1.
        device: where orders and masks are built.
        first_head: index in the layer of this process's first kv head; above 0 only under tensor parallelism.
        kv_heads: kv heads in this process; read only where no key tensor is given.
    """

    length: int
    query_len: int
    device: torch.device
    first_head: int = 0
    kv_heads: int = 1


@dataclass(frozen=True, eq=False)
class Rows:
    """The sequences of a batch that have the length and query_len of one group.

    Attributes:
        rows: the batch row each sequence is in, int64 [sequences].
        query_index: indices of their real queries in the call's query tensor, int64 [sequences, query_len].
        key_index: indices of their real tokens in the call's key tensor, int64 [sequences, length].
    """

    group: Group
    rows: Tensor
    query_index: Tensor
    key_index: Tensor

    def gather(self, tensor: Tensor, index: Tensor) -> Tensor:
        """Real tokens: [batch, heads, columns, head_dim] -> [sequences, heads, len(index), head_dim]."""
        return tensor[self.rows[:, None], :, index].transpose(1, 2)

    def scatter(self, output: Tensor, results: Tensor) -> None:
        """Write `results` [sequences, heads, query_len, head_dim] into `output` [batch, heads, columns, head_dim]."""
        output.transpose(1, 2).index_put_((self.rows[:, None], self.query_index), results.transpose(1, 2))


@dataclass(frozen=True, eq=False)
class Geometry:
    """All sequences of a forward call. The mask factory returns it, and transformers hands it to every layer as the
    attention mask.

    Attributes:
        columns: all token columns of the call, padding included, as one group.
        key_mask: bool [batch, columns.length], True at real tokens; None when there is no padding.
        documents: int64 [batch, columns.length], the number of each token's packed document, ascending along a row;
            None when every row is one document.
    """

    columns: Group
    key_mask: Tensor | None = None
    documents: Tensor | None = None
    _moved: dict[torch.device, "Geometry"] = field(default_factory=dict, repr=False)  # one per device, for all layers

    ndim = 2  # `generate` reads attention_mask.ndim

    @classmethod
    def build(
        cls,
        batch: int,
        query_len: int,
        key_len: int,
        key_mask: Tensor | None,
        device: torch.device,
        documents: Tensor | None = None,
    ) -> "Geometry":
        """Describe one call.

        Args:
            key_mask: bool [batch, key_len], True at real tokens, or None.

        Raises:
            ValueError: when the mask is not [batch, key_len].
        """
        cls.check_mask(key_mask, batch, key_len)
        if key_mask is not None and bool(key_mask.all()):
            key_mask = None
        return cls(Group(key_len, query_len, device), key_mask, documents)

    @staticmethod
    def check_mask(key_mask: Tensor | None, batch: int, key_len: int) -> None:
        """Raise ValueError when a mask is not [batch, key_len]."""
        if key_mask is not None and key_mask.shape != (batch, key_len):
            raise ValueError(
                f"attention_mask has shape {tuple(key_mask.shape)}, but this call has {batch} rows of {key_len} keys: "
                "pass one column per token, cached ones included"
            )

    @cached_property
    def parts(self) -> tuple[Rows, ...] | None:
        """Sequences that have a real query, grouped by (length, query_len); None without padding and documents."""
        if self.key_mask is None and self.documents is None:
            return None
        some = self.documents if self.key_mask is None else self.key_mask
        assert some is not None
        columns, device = self.columns, some.device
        real = torch.ones_like(some, dtype=torch.bool) if self.key_mask is None else self.key_mask
        document = torch.zeros_like(some, dtype=torch.int64) if self.documents is None else self.documents
        row, column = real.nonzero(as_tuple=True)
        # Sequences in the order of their tokens: by row, then by document.
        owner = (row * (int(document.max()) + 1) + document[row, column]).unique_consecutive(return_inverse=True)[1]
        num_sequences = int(owner[-1]) + 1 if owner.numel() else 0
        keys = torch.bincount(owner, minlength=num_sequences)
        offset = columns.length - columns.query_len
        queries = torch.bincount(owner[column >= offset], minlength=num_sequences)
        start = keys.cumsum(0) - keys
        members: dict[tuple[int, int], list[int]] = {}
        for sequence, shape in enumerate(torch.stack([keys, queries], dim=1).tolist()):
            if shape[1]:
                members.setdefault(tuple(shape), []).append(sequence)
        parts = []
        for (length, query_len), sequences in members.items():
            first = start[torch.tensor(sequences, device=device)]
            key_index = column[first[:, None] + torch.arange(length, device=device)]
            query_index = key_index[:, length - query_len :] - offset
            parts.append(Rows(Group(length, query_len, columns.device), row[first], query_index, key_index))
        return tuple(parts)

    def to(self, device: torch.device | str, **_: object) -> "Geometry":
        """The same geometry on another device (accelerate moves a layer's inputs to the layer)."""
        device = torch.device(device)
        if self.columns.device == device:
            return self
        if device not in self._moved:
            columns = Group(self.columns.length, self.columns.query_len, device)
            mask, documents = (None if x is None else x.to(device) for x in (self.key_mask, self.documents))
            self._moved[device] = Geometry(columns, mask, documents)
        return self._moved[device]

    def contiguous(self) -> "Geometry":
        """Itself: `generate` calls attention_mask.contiguous()."""
        return self


def encode(
    batch: int,
    query_len: int,
    key_len: int,
    offset: int | Tensor,
    key_mask: Tensor | None,
    documents: Tensor | None,
    device: torch.device,
) -> Tensor:
    """A geometry as a tensor, for static caches and compiled models. Reads no tensor's values, so it can be traced.

    Args:
        key_len: columns of the key tensor; a static cache has empty ones at the end.
        offset: index of this call's first column, which is the number of cached tokens.
        key_mask: bool [batch, <= key_len], True at real tokens, or None.

    Returns:
        int32 [batch, 1, 1, key_len]: REAL at real tokens, NEW at this call's columns, plus DOCUMENT times the document.

    Raises:
        ValueError: when the mask has more columns than there are keys.
    """
    if key_mask is not None and (key_mask.dim() != 2 or key_mask.shape[0] != batch or key_mask.shape[1] > key_len):
        raise ValueError(
            f"attention_mask has shape {tuple(key_mask.shape)}, but the cache holds {batch} rows of {key_len} keys: "
            "pass one column per token, cached ones included"
        )
    column = torch.arange(key_len, device=device)
    filled, new = column < offset + query_len, (column >= offset) & (column < offset + query_len)
    real = filled.expand(batch, key_len)
    if key_mask is not None:
        real = real & torch.nn.functional.pad(key_mask, (0, key_len - key_mask.shape[1]))
    codes = REAL * real.int() + NEW * new.int()
    if documents is not None:
        codes = codes + DOCUMENT * documents.int()
    return codes[:, None, None]


def decode(codes: Tensor, query_len: int) -> Geometry:
    """The geometry that `encode` wrote. It is kept on the tensor, because every layer of a forward gets that tensor."""
    known = getattr(codes, "_sa_patch_geometry", None)
    if known is not None:
        return known
    flat = codes[:, 0, 0]
    length = int((flat & NEW).any(dim=0).nonzero().max()) + 1
    flat = flat[:, :length]
    if not bool(((flat & REAL) * (flat & NEW)).any()):
        raise ValueError(
            f"the attention_mask has no real token among the {query_len} new columns up to {length}: pass one column "
            "per token, cached ones included"
        )
    documents = (flat // DOCUMENT).long()
    geometry = Geometry.build(
        flat.shape[0],
        query_len,
        length,
        (flat & REAL).bool(),
        codes.device,
        documents if bool(documents.any()) else None,
    )
    codes._sa_patch_geometry = geometry  # type: ignore[attr-defined]
    return geometry


def packed(geometry: Geometry, ends: Tensor) -> Geometry:
    """One row cut into documents. The result is kept on the geometry, because every layer of a forward asks for it.

    Args:
        ends: cumulative lengths 0, l1, l1 + l2, ..., as FlashAttention takes them: int [documents + 1].

    Raises:
        ValueError: when `ends` don't cover the row, or position_ids cut it into other documents.
    """
    known = geometry.__dict__.get("_packed")
    if known is not None:
        return known
    length = geometry.columns.length
    fits = ends.dim() == 1 and len(ends) > 1 and int(ends[0]) == 0 and int(ends[-1]) == length
    if not fits or bool((ends.diff() < 0).any()):
        raise ValueError(f"cu_seq_lens_q must ascend from 0 to the row's {length} tokens, got {ends.tolist()}")
    column = torch.arange(length, device=geometry.columns.device)
    documents = torch.searchsorted(ends.to(column), column, right=True)
    documents = documents.unique_consecutive(return_inverse=True)[1][None]  # empty documents take no number
    if geometry.documents is not None and not torch.equal(geometry.documents, documents):
        raise ValueError("cu_seq_lens_q and position_ids cut the row into different documents: pass one of them")
    made = Geometry(geometry.columns, geometry.key_mask, documents)
    geometry.__dict__["_packed"] = made
    return made


def refuse_restarts(position_ids: object, geometry: Geometry) -> None:
    """Refuse position_ids that do not ascend by 1 inside a sequence.

    They restart where documents are packed. transformers detects that only in calls without attention_mask and cache.

    Raises:
        NotImplementedError: they restart or skip.
    """
    if not isinstance(position_ids, Tensor) or position_ids.dim() != 2 or geometry.columns.query_len == 1:
        return
    if geometry.parts is None:
        runs = [position_ids]
    else:
        rows = position_ids.shape[0]  # 1 where all rows share their positions
        runs = [position_ids[(part.rows % rows)[:, None], part.query_index] for part in geometry.parts]
    if not all(bool((run.diff(dim=1) == 1).all()) for run in runs):
        raise NotImplementedError(
            "position_ids restart or skip inside a row, beside a cache or an attention_mask. Packed documents: "
            "transformers does not separate them there, so pass use_cache=False and no mask, or one document per row "
            "with padding. Padding between tokens: pass position_ids that leave it out (attention_mask.cumsum(1) - 1)"
        )
