"""Patterns: who sees whom, as data. The closed set every kernel executes: Dense, Band, Blocks, Scattered, Lines,
Selected; and those made of others, Pieces and Heads.

A pattern covers one sequence of `length` keys whose queries are the last `query_len` positions. All positions here are
logical (real tokens only). On top of its own part every pattern may open sinks, a local window and a dense tail. The
order of a permuted pattern may hold more tokens than there are keys: tokens still to come have their ranks already.
Imports torch only.
"""

from sa_patch.patterns.base import Dense, Pattern, sampling_weight
from sa_patch.patterns.joined import Heads, Pieces
from sa_patch.patterns.listed import Lines, Scattered, Selected
from sa_patch.patterns.ordered import Band, Blocks

__all__ = [
    "Band",
    "Blocks",
    "Dense",
    "Heads",
    "Lines",
    "Pattern",
    "Pieces",
    "Scattered",
    "Selected",
    "sampling_weight",
]
