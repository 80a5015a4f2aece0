"""How fast the kernels of earlier commits were, on this machine, now: for the history in NOTES.md.

    python benchmarks/versions.py 3527af2 2b44a9e 7226ce1 HEAD --threads 1 --cpu-time

Each commit's sa_patch is taken out of git into a temporary folder and timed in a process of its own, its calls in turns
with full causal attention; the fastest round of each counts. Figures are times full attention's speed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CELLS = ((2048, 128), (16_384, 128), (16_384, 512))
# Retyped, because earlier commits have no table of names to read.
ARMS = {"swa": ("swa", {}), "sa": ("sa", {}), "sa-bucket": ("sa", {"form": "bucket"}), "moba": ("moba", {})}
SHAPE = (8, 2, 64)  # heads, kv heads, head_dim


def measure(rounds: int, threads: int | None, cpu_time: bool) -> None:
    """What a process prints that sees one commit's sa_patch: {cell: {arm: times full}} as JSON."""
    import time

    import torch

    import sa_patch

    torch.set_num_threads(threads or torch.get_num_threads())
    clock = time.process_time if cpu_time else time.perf_counter
    heads, kv_heads, head_dim = SHAPE
    found = {}
    for length, window in CELLS:
        query, key, value = (torch.randn(1, count, length, head_dim) for count in (heads, kv_heads, kv_heads))
        calls = {
            "full": lambda q=query, k=key, v=value: torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True
            )
        }
        for name, (mode, options) in ARMS.items():
            variant = sa_patch.variant(mode, window, **options)
            calls[name] = lambda v=variant, t=(query, key, value): sa_patch.attention(*t, v)
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(rounds + 1):
            for name, call in calls.items():
                start = clock()
                call()
                taken[name] += [clock() - start] if turn else []
        best = {name: min(seconds) for name, seconds in taken.items()}
        found[f"{length:,}, {window}"] = {name: best["full"] / seconds for name, seconds in best.items()}
    print(json.dumps(found))


def run(commit: str, args: argparse.Namespace, root: Path) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit, "sa_patch"], cwd=root, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        command = [sys.executable, str(Path(__file__).resolve()), "--measure", "--rounds", str(args.rounds)]
        command += ["--threads", str(args.threads)] if args.threads else []
        command += ["--cpu-time"] if args.cpu_time else []
        environment = {**os.environ, "PYTHONPATH": folder}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=folder)
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", help="anything git understands")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--cpu-time", action="store_true", help="CPU instead of wall time: busy machines, 1 thread")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cpu_time and args.threads != 1:
        parser.error("--cpu-time means something with --threads 1 only")
    if args.measure:
        measure(args.rounds, args.threads, args.cpu_time)
        return
    root = Path(__file__).resolve().parent.parent
    for commit in args.commits:
        log = ["git", "log", "-1", "--format=%h %s", commit]
        print(subprocess.run(log, cwd=root, check=True, capture_output=True, text=True).stdout.strip())
        for cell, row in run(commit, args, root).items():
            print(f"  {cell:<13}" + "  ".join(f"{name} {row[name]:.1f}" for name in ARMS), flush=True)


if __name__ == "__main__":
    main()
