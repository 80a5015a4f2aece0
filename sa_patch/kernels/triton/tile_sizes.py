"""Tile sizes of the Triton programs: one table, and what follows from a pattern. Imports nothing.

Not measured on a GPU. Chosen by what the compiler makes of them (tests/patch/kernels/test_triton_compiles.py): for
sm_90, 128 rows on 8 warps keep both products on wgmma at up to 255 registers without spilling, where 4 warps spill at
head_dim 128 (160 stores) and 128 keys a step do on any number of warps; 64 rows on 4 warps let two instances share a
processor, but take twice the bytes per multiplication from L2. float32 has no tensor cores to fill: 64 rows spilled 400
stores.
`sa-eval tune` times the candidates on the user's own GPU.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import sqrt


@dataclass(frozen=True)
class Tile:
    """What one program instance works on.

    Attributes:
        rows: queries, tokens x heads of a group.
        keys: keys per step.
        warps, stages: Triton's num_warps and num_stages.
        registers: most of them per thread, so that more instances share a processor; 0: the compiler's choice.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int = 0


# Up to this head_dim: half precision, float32. The first that fits is taken.
TILES: dict[int, tuple[Tile, Tile]] = {
    64: (Tile(128, 64, 8, 3), Tile(32, 16, 8, 2)),
    128: (Tile(128, 64, 8, 3), Tile(32, 16, 8, 2)),
    256: (Tile(64, 32, 8, 2), Tile(16, 16, 8, 2)),
}
LARGEST_HEAD = max(TILES)
# Of the backward pass, in the same order.
BACKWARD_TILES: dict[int, tuple[Tile, Tile]] = {
    64: (Tile(64, 64, 4, 2), Tile(32, 16, 4, 1)),
    128: (Tile(64, 64, 8, 2), Tile(32, 16, 8, 1)),
    256: (Tile(32, 32, 8, 1), Tile(16, 16, 8, 1)),
}


@lru_cache(maxsize=64)
def tile_for(head_dim: int, exact: bool) -> Tile:
    """The tile for heads of that size; `exact` for float32."""
    return next(tiles[exact] for most, tiles in TILES.items() if head_dim <= most)


@lru_cache(maxsize=64)
def backward_tile_for(head_dim: int, exact: bool) -> Tile:
    """`tile_for` of the backward pass."""
    return next(tiles[exact] for most, tiles in BACKWARD_TILES.items() if head_dim <= most)


@lru_cache(maxsize=256)
def tiles_per_list(width: int, tokens: int) -> int:
    """How many tiles of `tokens` share a sorted list of keys, for a band of that width in a permuted order.

    m tiles share m t + 2w ranks, and visit (m + 1) / 2m of them on average because later keys are skipped; the product
    is smallest at m = sqrt(2w / t). The power of two above: as few visits, fewer lists.
    """
    best = sqrt((2 * width - 1) / tokens)
    return 1 << max(0, min(4, (round(best) - 1).bit_length()))


# Up to this head_dim, half precision: the numbers of a Tile. Those that spill more than a few registers on sm_90 (see
# tests/patch/kernels/run_triton_compile.py) are not among them; in the last two of head_dim 128 several instances share
# a processor. float32 has no others: more of any size spills.
_CANDIDATES = {
    64: [*product([128], [64, 128], [8], [2, 3], [0]), *product([64], [64, 128], [4], [2, 3], [0])],
    128: [
        *product([128], [64], [8], [2, 3], [0]),
        *product([64], [64], [4], [2, 3], [0]),
        *[(128, 32, 8, 3, 128), (64, 32, 4, 3, 168)],
    ],
    256: [],
}


def candidates(head_dim: int, exact: bool) -> list[tuple[int, ...]]:
    """Sizes that may be faster than `tile_for` on some GPU."""
    return [] if exact else next(found for most, found in _CANDIDATES.items() if head_dim <= most)
