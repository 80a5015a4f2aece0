"""Time and memory of attention in training: forward and backward of every arm beside full causal attention.

    python benchmarks/training.py --lengths 4096 16384 --windows 128 --threads 1 --cpu-time
    python benchmarks/training.py --device cuda --dtype bfloat16 --heads 32 --kv-heads 8 --head-dim 128 \\
        --kernels torch triton --lengths 8192 32768 --windows 512 --out results.json

All calls of a cell run in turns in one process; medians. "x full" is full causal attention's time for both passes over
the arm's: above 1 is faster than full. "kept" is what lies in memory between the passes beyond inputs and output;
"peak" is the most that both passes held at once beyond the inputs: output and gradients included. `gated` is half of
the window for sa and half for swa, each output times a gate, as in `sa_patch.gate`. What a kernel refuses is left out
and named.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from arms import ARMS, variant_of
from measure import environment, id_of, medians, peak_bytes, times
from torch import Tensor
from tqdm import tqdm

import sa_patch

Forward = Callable[[], Tensor]
DEFAULT = ["swa", "sa", "sa-bucket", "sa-dyadic", "gated"]


def forwards(args: argparse.Namespace, window: int, heads: list[Tensor]) -> dict[str, Forward]:
    """The forward pass of every arm, by name."""
    query, key, value = heads
    gates = torch.full((2, 1, args.heads, 1, 1), 0.5, device=query.device, dtype=query.dtype)

    def sparse(mode: str, kernel: str, width: int = window) -> Tensor:
        return sa_patch.attention(query, key, value, variant_of(mode, width), kernel=kernel)

    def gated(kernel: str) -> Tensor:
        local, far = (sparse(mode, kernel, window // 2) for mode in ("swa", "sa"))
        return gates[0] * local + gates[1] * far

    def full() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    calls: dict[str, Forward] = {"full": full}
    for arm in args.arms:
        for kernel in args.kernels:
            run = partial(gated, kernel) if arm == "gated" else partial(sparse, arm, kernel)
            calls[f"{arm}/{kernel}"] = run
    return calls


def kept_bytes(forward: Forward, inputs: list[Tensor]) -> int:
    """What autograd keeps for the backward pass, inputs and output aside."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[id_of(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    known = {id_of(tensor) for tensor in (*inputs, output)}
    return sum(size for storage, size in kept.items() if storage not in known)


def cell(args: argparse.Namespace, length: int, window: int, tick: Callable[[], object]) -> list[dict]:
    """A row per arm."""
    sizes = [(args.heads, length), (args.kv_heads, length), (args.kv_heads, length)]
    make = partial(torch.randn, device=args.device, dtype=getattr(torch, args.dtype))
    heads = [make(args.batch, *size, args.head_dim).requires_grad_() for size in sizes]
    grad = make(args.batch, args.heads, length, args.head_dim)

    def both(forward: Forward) -> Tensor:
        return torch.autograd.grad(forward(), heads, grad)[0]

    calls, rows = {}, []
    for name, forward in forwards(args, window, heads).items():
        try:
            both(forward)
        except NotImplementedError as refusal:
            rows.append({"arm": name, "length": length, "window": window, "refused": str(refusal)})
        else:
            calls[name] = forward
    timed = {name: partial(both, forward) for name, forward in calls.items()}
    taken, alone = (
        medians(times(some, args.rounds, args.device, cpu_time=args.cpu_time, tick=tick)) for some in (timed, calls)
    )
    for name, forward in calls.items():
        rows.append(
            {
                **{"arm": name, "length": length, "window": window, "forward": alone[name]},
                **{"both": taken[name], "x full": taken["full"] / taken[name]},
                **{"kept": kept_bytes(forward, heads), "peak": peak_bytes(timed[name], args.device)},
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    lines = [f"{'arm':<18}{'length':>8}{'window':>8}{'forward':>10}{'both':>10}{'x full':>8}{'kept':>11}{'peak':>11}"]
    for row in rows:
        head = f"{row['arm']:<18}{row['length']:>8}{row['window']:>8}"
        if "refused" in row:
            lines.append(f"{head}  refused: {row['refused']}")
            continue
        spent = f"{row['forward'] * 1e3:>7.1f} ms{row['both'] * 1e3:>7.1f} ms{row['x full']:>8.2f}"
        lines.append(f"{head}{spent}{row['kept'] / 2**20:>7.1f} MiB{row['peak'] / 2**20:>7.1f} MiB")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--lengths", type=int, nargs="+", default=[4096, 16_384])
    made.add_argument("--windows", type=int, nargs="+", default=[128])
    made.add_argument("--arms", nargs="+", default=DEFAULT, choices=[*ARMS, "gated"])
    made.add_argument("--kernels", nargs="+", default=["torch"])
    made.add_argument("--batch", type=int, default=1)
    made.add_argument("--heads", type=int, default=8)
    made.add_argument("--kv-heads", type=int, default=2)
    made.add_argument("--head-dim", type=int, default=64)
    made.add_argument("--dtype", default="float32")
    made.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--cpu-time", action="store_true", help="seconds of the process, where others use the machine")
    made.add_argument("--out", type=Path)
    return made


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    cells = [(length, window) for length in args.lengths for window in args.windows]
    rows = []
    with tqdm(total=len(cells) * 2 * (args.rounds + 1) * (1 + len(args.arms) * len(args.kernels))) as bar:
        for length, window in cells:
            rows += cell(args, length, window, bar.update)
    print(table(rows))
    if args.out:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        args.out.write_text(json.dumps({**environment(), "settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
