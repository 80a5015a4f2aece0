"""Times candidate tile sizes of the Triton programs on a GPU and prints the best for `kernels/triton/tile_sizes.py`.

    python benchmarks/tune_triton.py --length 32768 --window 512 --out tune.json

A candidate is (rows, keys, warps, stages, most registers or 0); what does not compile or does not fit is named and left
out.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from unittest.mock import patch

import torch
from arms import ARMS, variant_of
from measure import environment, medians, times
from tqdm import tqdm

import sa_patch
from sa_patch.kernels.triton.tile_sizes import Tile, tile_for

# Those that tests/run_triton_compile.py shows to spill more than a few registers on sm_90 are not among them. In the
# last two, several instances share a processor.
CANDIDATES = {
    64: [*product([128], [64, 128], [8], [2, 3], [0]), *product([64], [64, 128], [4], [2, 3], [0])],
    128: [
        *product([128], [64], [8], [2, 3], [0]),
        *product([64], [64], [4], [2, 3], [0]),
        *[(128, 32, 8, 3, 128), (64, 32, 4, 3, 168)],
    ],
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dims", type=int, nargs="+", choices=CANDIDATES, default=[*CANDIDATES])
    parser.add_argument("--length", type=int, default=32_768)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["swa", "sa", "sa-bucket", "moba", "routed+tiles32"])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write all times as JSON")
    return parser.parse_args()


def measured(args: argparse.Namespace, head_dim: int, tile: Tile) -> dict[str, float]:
    """Milliseconds per arm with that tile."""
    shape = {"device": "cuda", "dtype": torch.bfloat16}
    query = torch.randn(1, args.heads, args.length, head_dim, **shape)
    key, value = (torch.randn(1, args.kv_heads, args.length, head_dim, **shape) for _ in range(2))
    calls = {}
    for arm in args.arms:
        variant = variant_of(arm, args.window)
        calls[arm] = lambda variant=variant: sa_patch.attention(query, key, value, variant, kernel="triton")
    with patch("sa_patch.kernels.triton.kernel.tile_for", lambda head_dim, exact: tile):
        taken = medians(times(calls, args.rounds, "cuda"))
    return {arm: 1e3 * seconds for arm, seconds in taken.items()}


@torch.no_grad()
def main() -> None:
    args = arguments()
    found = []
    for head_dim in args.head_dims:
        rows = []
        for candidate in tqdm(CANDIDATES[head_dim], unit="tile", desc=f"head_dim {head_dim}"):
            tile = Tile(*candidate)
            try:
                rows.append({"head_dim": head_dim, "tile": candidate, "ms": measured(args, head_dim, tile)})
            except Exception as error:  # out of shared memory or registers: said by Triton in many ways
                print(f"{tile} left out: {type(error).__name__}: {str(error).splitlines()[0]}")
        for arm in args.arms:
            best = sorted(rows, key=lambda row: row["ms"][arm])[:3]
            print(f"head_dim {head_dim}, {arm}: " + ", ".join(f"{row['tile']} {row['ms'][arm]:.3f} ms" for row in best))
        if rows:
            best = min(rows, key=lambda row: sum(row["ms"].values()))
            print(f"head_dim {head_dim}: proposed {Tile(*best['tile'])}, in use {tile_for(head_dim, False)}")
        found += rows
        if args.out:
            args.out.write_text(json.dumps({"environment": environment(), "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
