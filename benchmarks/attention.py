"""Time and memory of one attention call: every variant and kernel beside full attention and what else there is.

    python benchmarks/attention.py --lengths 2048 16384 --windows 128 512 --threads 1 --cpu-time
    python benchmarks/attention.py --device cuda --dtype bfloat16 --heads 32 --kv-heads 8 --head-dim 128 \\
        --kernels triton flash flex --lengths 8192 32768 131072 --windows 512 --out results.json

All calls of a cell run in turns in one process; medians. "x full" is the time of full causal attention (the fastest of
PyTorch's backends) over the call's: above 1 is faster than full. "floor" is the time the pairs that are needed would
take at this machine's measured rate of matrix products, or the inputs and outputs at its rate of copies, whichever is
more. "cold" is a call that makes its orders and plans anew, as the first prompt of a length does; all others find them.
`masked` is PyTorch's fused attention with the dense mask of sa, `full/flex` compiled FlexAttention. What a kernel
refuses is left out and named.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from arms import ARMS, variant_of
from measure import Call, environment, host_seconds, limits, medians, peak_bytes, times
from torch import Tensor
from tqdm import tqdm

import sa_patch
from sa_patch.geometry import Group
from sa_patch.kept import KEPT
from sa_patch.kernels import KERNELS
from sa_patch.kernels.dense import fused
from sa_patch.patterns import Blocks
from sa_patch.tuning.timing import full_calls

GPU_KERNELS = ["triton", "flash", "flex", "torch"]
LONGEST_MASK = 16_384  # a dense mask of more is no way anybody takes


def rival_calls(query: Tensor, key: Tensor, value: Tensor, window: int, flex: bool) -> dict[str, Call]:
    """The mask of sa, dense, for PyTorch's own attention; and full attention through compiled FlexAttention."""
    length, scaling = query.shape[2], query.shape[-1] ** -0.5
    calls: dict[str, Call] = {}
    if length <= LONGEST_MASK:
        group = Group(length, length, query.device)
        mask = sa_patch.variant("sa", window).sparse_pattern(group, 0, None, None).visible()
        calls["sa/masked"] = lambda: fused(query, key, value, scaling, mask)
    if flex:
        from sa_patch.kernels.flex.block_masks import make_blocks
        from sa_patch.kernels.flex.kernel import flexible

        one_run = Blocks(length=length, query_len=length, block_size=length)
        blocks = make_blocks(one_run, query.device, split=False).mask()
        calls["full/flex"] = lambda: flexible(query, key, value, blocks, scaling, with_lse=False)[0]
    return calls


def arm_calls(args: argparse.Namespace, window: int, tensors: tuple[Tensor, ...]) -> dict[str, Call]:
    def run(variant: sa_patch.Variant, kernel: str) -> Call:
        return lambda: sa_patch.attention(*tensors, variant, kernel=kernel)

    calls = {}
    for arm in args.arms:
        for kernel in args.kernels:
            calls[f"{arm}/{kernel}"] = run(variant_of(arm, window), kernel)
    return calls


def that_run(calls: dict[str, Call]) -> dict[str, Call]:
    """Those that work here; the others are named. One broken kernel must not cost the figures of all."""
    working = {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            text = str(error).strip()
            print(f"  {name} left out: {type(error).__name__}: {text.splitlines()[0] if text else ''}")
        else:
            working[name] = call
    return working


def memory(call: Call, device: str, moved: int) -> float | None:
    """Peak memory in units of inputs and output; None for FlexAttention on a CPU, which nothing can watch."""
    try:
        return peak_bytes(call, device) / moved
    except NotImplementedError:
        return None


def cold(call: Call) -> Call:
    def anew() -> Tensor:
        KEPT.forget()
        return call()

    return anew


def compare(length: int, window: int, args: argparse.Namespace, rates: dict, tick: Callable[[], object]) -> dict:
    """One cell of the table: every call's time, memory and floor at one length and window."""
    shape = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    query = torch.randn(1, args.heads, length, args.head_dim, **shape)
    key, value = (torch.randn(1, args.kv_heads, length, args.head_dim, **shape) for _ in range(2))
    calls = full_calls(query, key, value) | rival_calls(query, key, value, window, args.flex)
    calls = that_run(calls | arm_calls(args, window, (query, key, value)))
    baselines = [name for name in calls if name.startswith("full")]
    taken = medians(times(calls, args.rounds, args.device, cpu_time=args.cpu_time, tick=tick))
    moved = 2 * (query.nbytes + key.nbytes)
    full = min(taken[name] for name in baselines)
    arms = {name: cold(call) for name, call in calls.items() if name.split("/")[0] in ARMS and name != "sa/masked"}
    first = medians(times(arms, 2, args.device, cpu_time=args.cpu_time, tick=tick))
    rows = {}
    for name, call in calls.items():
        pairs = variant_of(name.split("/")[0], window).sparse_budget(length, 0).pairs
        floor = max(4 * pairs * args.heads * args.head_dim / rates["flops"], moved / rates["bytes"])
        rows[name] = {
            "ms": 1e3 * taken[name],
            "times_full": full / taken[name],
            "keys_per_query": pairs / length,
            "floor_ms": 1e3 * floor,
            "memory": memory(call, args.device, moved),
            "of_products": 4 * pairs * args.heads * args.head_dim / taken[name] / rates["flops"],
            **({"cold_ms": 1e3 * first[name]} if name in first else {}),
        }
        if args.device == "cuda":
            rows[name]["host_us"] = 1e6 * host_seconds(call)
    return {"length": length, "window": window, "calls": rows}


def show(cell: dict) -> None:
    print(f"\nn={cell['length']:,} w={cell['window']}")
    heads = f"{'x full':>9}{'keys/query':>12}{'floor ms':>10}{'of floor':>10}{'memory':>9}{'cold ms':>10}"
    print(f"  {'':<18}{'ms':>10}{heads}")
    for name, row in cell["calls"].items():
        line = f"  {name:<18}{row['ms']:>10.2f}{row['times_full']:>9.2f}{row['keys_per_query']:>12.1f}"
        share = row["floor_ms"] / row["ms"]
        host = f"{row['host_us']:>8.0f} us host" if "host_us" in row else ""
        held = "-" if row["memory"] is None else f"{row['memory']:.1f}x"
        first = f"{row['cold_ms']:>10.2f}" if "cold_ms" in row else f"{'':>10}"
        print(f"{line}{row['floor_ms']:>10.2f}{share:>10.0%}{held:>9}{first}{host}")


def plot(cells: list[dict], path: Path) -> None:
    """Times full over the length, a line per call and window."""
    import matplotlib.pyplot as pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    names = sorted({(name, cell["window"]) for cell in cells for name in cell["calls"] if not name.startswith("full")})
    for name, window in names:
        points = [
            (cell["length"], cell["calls"][name]["times_full"])
            for cell in cells
            if cell["window"] == window and name in cell["calls"]
        ]
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=f"{name}, w={window}")
    axes.axhline(1, color="grey", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="times as fast as full attention")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=130, bbox_inches="tight")


def arguments() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 16384], help="tokens")
    parser.add_argument("--windows", type=int, nargs="+", default=[128, 512], help="keys per query")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["swa", "sa", "sa-bucket", "sa-dyadic", "moba"])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=GPU_KERNELS if cuda else ["torch", "cpp"])
    parser.add_argument("--flex", action="store_true", help="full attention through compiled FlexAttention too")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if cuda else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--cpu-time", action="store_true", help="CPU instead of wall time: busy machines, 1 thread")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, and a picture beside it")
    args = parser.parse_args()
    if args.cpu_time and (args.threads != 1 or args.device != "cpu"):
        parser.error("--cpu-time means something on a CPU with --threads 1 only")
    return args


@torch.no_grad()
def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    rates = limits(args.device, getattr(torch, args.dtype), cpu_time=args.cpu_time)
    found = {**environment(), "dtype": args.dtype, **{f"{name}_per_s": rate for name, rate in rates.items()}}
    print(json.dumps(found))
    cells = []
    todo = [(length, window) for length in args.lengths for window in args.windows if window < length]
    with tqdm(todo, unit="cell") as progress:
        for length, window in progress:
            cells.append(compare(length, window, args, rates, progress.refresh))
            show(cells[-1])
            if args.out:  # after every cell: what was measured is not lost
                args.out.write_text(json.dumps({"environment": found, "cells": cells}, indent=1) + "\n")
    if args.out:
        try:
            plot(cells, args.out.with_suffix(".png"))
        except ImportError:
            print("no picture: matplotlib is not installed")


if __name__ == "__main__":
    main()
