"""One forward call's sequences: which tokens are real, how long each row is, which rows can run together.

Padding never reaches a pattern or a kernel: real tokens are gathered into groups of equally long rows and results are
scattered back. Imports torch only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Sequences of one shape.

    Attributes:
        length: keys per sequence, n.
        query_len: queries per sequence; they are the last positions.
        device: where orders and masks are built.
    """

    length: int
    query_len: int
    device: torch.device


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a padded batch that form one group.

    Attributes:
        rows: indices of the rows, int64 [rows].
        query_index, key_index: columns of their real tokens, int64 [rows, query_len] and [rows, length].
    """

    group: Group
    rows: Tensor
    query_index: Tensor
    key_index: Tensor

    def gather(self, tensor: Tensor, index: Tensor) -> Tensor:
        """Real tokens: [batch, heads, columns, head_dim] -> [rows, heads, len(index), head_dim]."""
        return tensor[self.rows[:, None], :, index].transpose(1, 2)

    def scatter(self, output: Tensor, part: Tensor) -> None:
        """Write results [rows, heads, query_len, head_dim] into `output` [batch, heads, columns, head_dim]."""
        output.transpose(1, 2).index_put_((self.rows[:, None], self.query_index), part.transpose(1, 2))

    def to(self, device: torch.device) -> "Rows":
        group = Group(self.group.length, self.group.query_len, device)
        return Rows(group, *(tensor.to(device) for tensor in (self.rows, self.query_index, self.key_index)))


@dataclass(frozen=True, eq=False)
class Geometry:
    """All sequences of a forward call; what transformers carries to every layer as the attention mask.

    Attributes:
        columns: the call's columns, padding included, as one group.
        parts: None when there is no padding; else every row with a real query is in exactly one part. Empty while
            decoding, where rows run together under `key_mask`.
        key_mask: bool [batch, columns.length], True at real tokens; None when there is no padding.
    """

    columns: Group
    parts: tuple[Rows, ...] | None = None
    key_mask: Tensor | None = None

    @classmethod
    def build(
        cls, batch: int, query_len: int, key_len: int, key_mask: Tensor | None, device: torch.device
    ) -> "Geometry":
        """Group the rows of one call.

        Args:
            key_mask: bool [batch, key_len], True at real tokens, or None.

        Raises:
            ValueError: when the mask has other columns than there are keys.
        """
        columns = Group(key_len, query_len, device)
        if key_mask is None:
            return cls(columns)
        if key_mask.shape != (batch, key_len):
            raise ValueError(
                f"attention_mask has shape {tuple(key_mask.shape)}, but this call has {batch} rows of {key_len} keys: "
                "pass one column per token, cached ones included"
            )
        if bool(key_mask.all()):
            return cls(columns)
        if query_len == 1 < key_len:
            return cls(columns, (), key_mask)  # decoding needs the mask alone
        counts = torch.stack([key_mask.sum(1), key_mask[:, key_len - query_len :].sum(1)], dim=1).tolist()
        members: dict[tuple[int, int], list[int]] = {}
        for row, (keys, queries) in enumerate(counts):
            if queries:
                members.setdefault((keys, queries), []).append(row)
        parts = tuple(
            _rows(key_mask, query_len, Group(keys, queries, device), rows) for (keys, queries), rows in members.items()
        )
        return cls(columns, parts, key_mask)

    def to(self, device: torch.device | str, **_: object) -> "Geometry":
        """The same geometry on another device (accelerate moves a layer's inputs to the layer)."""
        device = torch.device(device)
        if self.columns.device == device:
            return self
        columns = Group(self.columns.length, self.columns.query_len, device)
        if self.parts is None or self.key_mask is None:
            return Geometry(columns)
        return Geometry(columns, tuple(part.to(device) for part in self.parts), self.key_mask.to(device))


def _rows(key_mask: Tensor, query_len: int, group: Group, rows: list[int]) -> Rows:
    index = torch.tensor(rows, device=key_mask.device)
    mask = key_mask[index]
    key_index = mask.nonzero()[:, 1].view(len(rows), group.length)
    query_index = mask[:, mask.shape[1] - query_len :].nonzero()[:, 1].view(len(rows), group.query_len)
    return Rows(group, index, query_index, key_index)
