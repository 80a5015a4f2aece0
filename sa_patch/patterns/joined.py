"""Patterns made of others: stretches of queries, and kv heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_patch.patterns.base import Pattern


@dataclass(frozen=True, eq=False, kw_only=True)
class Pieces(Pattern):
    """Consecutive stretches of queries, each with its own pattern over the keys up to its own end.

    Attributes:
        pieces: in order. Piece k's queries end where piece k + 1's begin; the last piece's keys are all keys.
    """

    pieces: tuple[Pattern, ...]

    @classmethod
    def of(cls, pieces: list[Pattern]) -> Pattern:
        """The pieces as one pattern; a single piece is itself."""
        if len(pieces) == 1:
            return pieces[0]
        query_len = sum(piece.query_len for piece in pieces)
        weight = max(piece.weight for piece in pieces)
        return cls(length=pieces[-1].length, query_len=query_len, weight=weight, pieces=tuple(pieces))

    @property
    def covers_all(self) -> bool:
        return all(piece.covers_all for piece in self.pieces)

    def visible(self, queries: Tensor | None = None) -> Tensor:
        return self._joined(queries, lambda piece, own: piece.visible(own))

    def raised(self, queries: Tensor | None = None) -> Tensor:
        return self._joined(queries, lambda piece, own: piece.raised(own))

    def _joined(self, queries: Tensor | None, of_piece: Callable[[Pattern, Tensor], Tensor]) -> Tensor:
        if queries is None:
            queries = torch.arange(self.first, self.length, device=self._device())
        rows = []
        for piece in self.pieces:
            own = queries[(queries >= piece.first) & (queries < piece.length)]
            rows.append(F.pad(of_piece(piece, own), (0, self.length - piece.length)))
        return torch.cat(rows, dim=-2)

    def count(self) -> int:
        return sum(piece.count() for piece in self.pieces)

    def _device(self) -> torch.device:
        return self.pieces[-1]._device()


@dataclass(frozen=True, eq=False, kw_only=True)
class Heads(Pattern):
    """A pattern for every kv head, over the same queries and keys; kernels get them one by one.

    Attributes:
        of_head: one per kv head, in order; none is `Heads` itself.
        group: query heads per kv head.
    """

    of_head: tuple[Pattern, ...]
    group: int = 1

    @classmethod
    def of(cls, of_head: Sequence[Pattern], group: int) -> Pattern:
        """The patterns as one: the first of them where there is one head, or where all are full attention."""
        first = of_head[0]
        if len(of_head) == 1 or all(pattern.covers_all for pattern in of_head):
            return first
        shape = {"length": first.length, "query_len": first.query_len, "weight": first.weight}
        return cls(of_head=tuple(of_head), group=group, **shape)

    @property
    def covers_all(self) -> bool:
        return all(pattern.covers_all for pattern in self.of_head)

    def visible(self, queries: Tensor | None = None) -> Tensor:
        """bool [1, heads, q, length]."""
        return self._stacked([pattern.visible(queries) for pattern in self.of_head])

    def raised(self, queries: Tensor | None = None) -> Tensor:
        return self._stacked([pattern.raised(queries) for pattern in self.of_head])

    def _stacked(self, of_head: list[Tensor]) -> Tensor:
        return torch.stack(of_head).repeat_interleave(self.group, dim=0)[None]

    def count(self) -> int:
        return round(sum(pattern.count() for pattern in self.of_head) / len(self.of_head))

    def _device(self) -> torch.device:
        return self.of_head[0]._device()
