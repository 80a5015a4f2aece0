"""One forward call's sequences: which tokens are real, how long each row is, which rows can run together.

Padding never reaches a pattern or a kernel: real tokens are gathered into groups of equally long rows and results are
scattered back.
Imports torch only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Rows with the same number of real keys and queries.

    Attributes:
        length: real keys per row, n.
        query_len: real queries per row; they are the last positions.
        device: where orders and masks are built.
        rows: indices of the rows, int64 [rows]; None when the group is the whole batch as it is.
        query_index, key_index: columns of the real tokens, int64 [rows, query_len] and [rows, length].
    """

    length: int
    query_len: int
    device: torch.device
    rows: Tensor | None = None
    query_index: Tensor | None = None
    key_index: Tensor | None = None

    @property
    def is_prompt(self) -> bool:
        """True when every key has its query here: a whole sequence, not a continuation."""
        return self.query_len == self.length

    def gather(self, tensor: Tensor, index: Tensor | None) -> Tensor:
        """[batch, heads, columns, head_dim] -> the group's real tokens, [rows, heads, len(index), head_dim]."""
        if self.rows is None or index is None:
            return tensor
        return tensor[self.rows[:, None], :, index].transpose(1, 2)

    def scatter(self, output: Tensor, part: Tensor) -> Tensor:
        """`output` [batch, heads, columns, head_dim] with the group's results [rows, heads, q, head_dim] written in."""
        if self.rows is None or self.query_index is None:
            return part
        output.transpose(1, 2).index_put_((self.rows[:, None], self.query_index), part.transpose(1, 2))
        return output


@dataclass(frozen=True, eq=False)
class Geometry:
    """All groups of a forward call; what transformers carries to every layer as the attention mask.

    Attributes:
        query_len, key_len: columns of this call's queries and keys, padding included.
        groups: every row with a real query is in exactly one.
        key_mask: bool [batch, key_len], True at real tokens; None when all are real.
    """

    query_len: int
    key_len: int
    groups: tuple[Group, ...]
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
        if key_mask is None or bool(key_mask.all()):
            return cls(query_len, key_len, (Group(key_len, query_len, device),))
        if key_mask.shape != (batch, key_len):
            raise ValueError(
                f"attention_mask has shape {tuple(key_mask.shape)}, but this call has {batch} rows of {key_len} keys: "
                "pass one column per token, cached ones included"
            )
        counts = torch.stack([key_mask.sum(1), key_mask[:, key_len - query_len :].sum(1)], dim=1).tolist()
        members: dict[tuple[int, int], list[int]] = {}
        for row, (keys, queries) in enumerate(counts):
            if queries:
                members.setdefault((keys, queries), []).append(row)
        groups = tuple(_group(key_mask, query_len, *size, rows, device) for size, rows in members.items())
        return cls(query_len, key_len, groups, key_mask)

    def to(self, device: torch.device | str, **_: object) -> "Geometry":
        """The same geometry on another device (accelerate moves a layer's inputs to the layer)."""
        device = torch.device(device)
        if all(group.device == device for group in self.groups):
            return self

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        groups = tuple(
            Group(g.length, g.query_len, device, move(g.rows), move(g.query_index), move(g.key_index))
            for g in self.groups
        )
        return Geometry(self.query_len, self.key_len, groups, move(self.key_mask))


def _group(key_mask: Tensor, query_len: int, keys: int, queries: int, rows: list[int], device: torch.device) -> Group:
    index = torch.tensor(rows, device=device)
    mask = key_mask[index].to(device)
    key_index = mask.nonzero()[:, 1].view(len(rows), keys)
    query_index = mask[:, mask.shape[1] - query_len :].nonzero()[:, 1].view(len(rows), queries)
    return Group(keys, queries, device, index, query_index, key_index)
