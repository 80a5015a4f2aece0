"""From which prompt length on is sparse attention faster than full? Checks the rules in use.

    python benchmarks/crossover.py --threads 1 --cpu-time                  a busy machine
    python benchmarks/crossover.py --out benchmarks/results/crossover.json an idle one

One variant per layout (how its keys lie in memory), windows, and lengths from 64 tokens on, denser around the length in
the table. A figure is the time of full causal attention over the variant's: the fastest round of each counts, which
leaves out what other programs took. `*` marks lengths that dense_below="crossover" leaves full, with the microseconds
that asking costs there. "worst" is the worst of all others and must not be below 1; "could be" is the length from which
on the variant was never slower.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from arms import ARMS, variant_of
from measure import environment
from torch import Tensor
from tqdm import tqdm

import sa_patch
from sa_patch.kernels import crossover
from sa_patch.kernels.dense import causal

LONG_ENOUGH = 0.02  # seconds of calls per reading: shorter ones are repeated


def lengths_for(limit: int, longest: int) -> list[int]:
    """Powers of two, and lengths around the limit."""
    powers = [1 << power for power in range(6, longest.bit_length())]
    near = [round(limit * factor) for factor in (0.5, 0.75, 0.9, 1)] + [limit + 1]
    near += [round(limit * factor) for factor in (1.1, 1.25, 1.5)]
    return sorted({length for length in powers + near if 64 <= length <= longest})


def reading(call, clock) -> float:
    """Seconds per call."""
    start, count = clock(), 0
    while True:
        call()
        count += 1
        taken = clock() - start
        if taken > LONG_ENOUGH:
            return taken / count


def fastest(tensors: tuple[Tensor, ...], variant: sa_patch.Variant, rounds: int, clock) -> tuple[float, float]:
    """Seconds of full attention and of the variant, taken in turns, each the fastest of the rounds."""
    scaling = tensors[0].shape[-1] ** -0.5
    full, other = (lambda: causal(*tensors, scaling)), (lambda: sa_patch.attention(*tensors, variant))
    full(), other()
    taken = [(reading(full, clock), reading(other, clock)) for _ in range(rounds)]
    return min(first for first, _ in taken), min(second for _, second in taken)


def sweep(name: str, window: int, args: argparse.Namespace) -> dict:
    always = variant_of(name, window)
    asking = variant_of(name, window, dense_below="crossover")
    layout = "merged" if always.sinks or always.local else always.layout
    limit = crossover(layout, window, torch.device("cpu"), getattr(torch, args.dtype))
    clock = time.process_time if args.cpu_time else time.perf_counter
    rows = []
    for length in lengths_for(limit, args.longest):
        heads, dtype = (args.heads, args.kv_heads, args.kv_heads), getattr(torch, args.dtype)
        tensors = tuple(torch.randn(1, count, length, args.head_dim, dtype=dtype) for count in heads)
        rounds = args.rounds if length <= 2 * limit else min(args.rounds, 3)  # far from 1
        full, sparse = fastest(tensors, always, rounds, clock)
        row = {"length": length, "times_full": full / sparse}
        if length <= limit:
            full, asked = fastest(tensors, asking, args.rounds, clock)
            row["asking_us"] = 1e6 * (asked - full)
        rows.append(row)
    slower = max((row["length"] for row in rows if row["times_full"] < 1), default=0)
    could_be = min((row["length"] for row in rows if row["length"] > slower), default=None)
    above = [(row["times_full"], row["length"]) for row in rows if row["length"] > limit]
    worst, worst_length = min(above, default=(None, None))
    found = {"arm": name, "layout": layout, "window": window, "limit": limit, "could_be": could_be}
    return {**found, "worst": worst, "worst_length": worst_length, "rows": rows}


def show(found: dict) -> None:
    could_be = f"below {found['could_be']:,}" if found["could_be"] else "later than --longest"
    worst = f"{found['worst']:.2f}x at {found['worst_length']:,}" if found["worst"] else "beyond --longest"
    limit = f"full up to {found['limit']:,}, could be {could_be}"
    print(f"\n{found['arm']} ({found['layout']}) w={found['window']}: {limit}; worst {worst}")
    shown = []
    for row in found["rows"]:
        asking = f"* ({row['asking_us']:+.0f} us)" if "asking_us" in row else ""
        shown.append(f"{row['length']:,}{asking} {row['times_full']:.2f}")
    print("  " + ", ".join(shown), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--windows", type=int, nargs="+", default=[64, 128, 512])
    parser.add_argument("--longest", type=int, default=16_384, help="tokens")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--cpu-time", action="store_true", help="CPU instead of wall time: busy machines, 1 thread")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.cpu_time and args.threads != 1:
        parser.error("--cpu-time means something with --threads 1 only")
    return args


@torch.no_grad()
def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    found = []
    for name, window in tqdm([(name, window) for name in args.arms for window in args.windows], unit="sweep"):
        found.append(sweep(name, window, args))
        show(found[-1])
        if args.out:
            args.out.write_text(json.dumps({"environment": environment(), "sweeps": found}, indent=1) + "\n")
    worst = min((sweep for sweep in found if sweep["worst"]), key=lambda sweep: sweep["worst"])
    place = f"{worst['arm']}, w={worst['window']}, {worst['worst_length']:,} tokens"
    print(f'\nworst with dense_below="crossover": {worst["worst"]:.2f} times as fast as full ({place})')


if __name__ == "__main__":
    main()
