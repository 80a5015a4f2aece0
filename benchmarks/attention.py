"""Time of one attention call, every variant and kernel against full attention, interleaved in one process.

    python benchmarks/attention.py --lengths 2048 16384 --windows 128 512

Prints medians and their ratio to causal `scaled_dot_product_attention`; above 1x is faster than full.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import sa_patch
from sa_patch.kernels.dense import causal

ARMS = {
    "sa": ("sa", {}),
    "sa-bucket": ("sa", {"form": "bucket"}),
    "swa": ("swa", {}),
    "moba": ("moba", {}),
    "sa+swa": ("sa+swa", {}),
    "swa+sinks": ("swa", {"sinks": 4}),
}


def measure(calls: dict[str, Callable[[], Tensor]], args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each call, taken in turns so that a drifting machine hits all alike; one warm-up round."""
    clock = time.process_time if args.cpu_time else time.perf_counter
    taken = {name: [] for name in calls}
    for turn in range(args.rounds + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if args.device == "cuda":
                torch.cuda.synchronize()
            if turn:
                taken[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def compare(length: int, window: int, args: argparse.Namespace) -> dict:
    """One row of the table: full attention and all arms at one length and window."""
    dtype = getattr(torch, args.dtype)
    shape = {"device": args.device, "dtype": dtype}
    query = torch.randn(1, args.heads, length, args.head_dim, **shape)
    key, value = (torch.randn(1, args.kv_heads, length, args.head_dim, **shape) for _ in range(2))
    calls: dict[str, Callable[[], Tensor]] = {"full": lambda: causal(query, key, value, args.head_dim**-0.5)}
    pairs = {"full": length * (length + 1) // 2}
    for name in args.arms:
        mode, options = ARMS[name]
        variant = sa_patch.variant(mode, window, **options)
        pairs[name] = variant.sparse_budget(length, 0).pairs
        for kernel in args.kernels:
            if kernel == "sdpa" and length > 4096:
                continue

            def call(variant=variant, kernel=kernel) -> Tensor:
                return sa_patch.attention(query, key, value, variant, kernel=kernel)

            calls[f"{name}/{kernel}"] = call
    with torch.no_grad():
        seconds = measure(calls, args)
    return {"length": length, "window": window, "pairs": pairs, "ms": {name: 1e3 * s for name, s in seconds.items()}}


def hardware() -> dict:
    """What the numbers were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu, "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 16384])
    parser.add_argument("--windows", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["sa", "sa-bucket", "swa", "moba"])
    parser.add_argument("--kernels", nargs="+", default=["torch"], help="torch, sdpa")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--cpu-time", action="store_true", help="CPU instead of wall time: busy machines, 1 thread")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.cpu_time and (args.threads != 1 or args.device != "cpu"):
        parser.error("--cpu-time means something on a CPU with --threads 1 only")
    if args.threads:
        torch.set_num_threads(args.threads)
    cells = [(length, window) for length in args.lengths for window in args.windows if window < length]
    rows = [compare(length, window, args) for length, window in tqdm(cells, unit="cell")]
    print(json.dumps(hardware()))
    for row in rows:
        full = row["ms"]["full"]
        print(f"\nn={row['length']:,} w={row['window']}: full {full:.1f} ms")
        for name, taken in row["ms"].items():
            if name != "full":
                share = row["pairs"][name.split("/")[0]] / row["pairs"]["full"]
                print(f"  {name:<18} {taken:9.1f} ms  {full / taken:6.2f}x full  (pairs allow {1 / share:.1f}x)")
    if args.out:
        args.out.write_text(json.dumps({"hardware": hardware(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
