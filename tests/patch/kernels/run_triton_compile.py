"""Compile the Triton programs for GPUs that are not there, and print what came out: registers, spills, matrix products.

    python tests/run_triton_compile.py 90 float16 128 plan  ->  a line of JSON per program

Needs Triton's compiler only. A process of its own: tests run with Triton's interpreter, which can't compile.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sa_patch.kernels.triton import gradient_programs, programs, request_programs, router_programs
from sa_patch.kernels.triton.launch import dim_for
from sa_patch.kernels.triton.plans import FACTS
from sa_patch.kernels.triton.tile_sizes import TILES, Tile, backward_tile_for, tile_for

TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
HALVES = {"query", "key", "value", "output", "prior_output", "statistics"}
HALVES |= {"grad", "query_grad", "key_grad", "value_grad"}
OTHERS = {
    **dict.fromkeys(("lse", "prior_lse", "votes", "delta"), "*fp32"),
    **dict.fromkeys(("query_pos", "query_rank", "key_pos", "key_rank", "facts", "begin_of", "end_of"), "*i32"),
    **dict.fromkeys(("selected", "order", "best"), "*i64"),
}
FEW = ("routed", "votes")  # tiles of 64 rows, 16 queries of 4 heads
FLOATS = ("scale_log2", "scale", "share", "scaling")
PROGRAMS = {
    "requests": request_programs.requests_program,
    "routed": programs.routed_program,
    "nearest": router_programs.nearest_program,
    "votes": router_programs.votes_program,
}
# Of the backward pass, with the constant that only this program has.
BACKWARD = {
    "query-gradient": (gradient_programs.query_gradient_program, "SINKS"),
    "key-gradient": (gradient_programs.key_gradient_program, "BY_TILE"),
}
# The cases that differ in code: a permuted band; a run with what was selected merged; a sliding window with sinks;
# sinks in a permuted band beside a local window.
PLANS = {
    "plan": {"BANDED": True},
    "runs": {"LISTED": False, "PRIORS": 1},
    "window": {"BANDED": True, "LISTED": False, "SINKS": True},
    "extras": {"BANDED": True, "SINKS": True, "PRIORS": 1, "WITH_LSE": True},
}


def constants(kind: str, head_dim: int, exact: bool, tile: Tile) -> dict:
    dim = dim_for(head_dim)
    common = {"KEYS": tile.keys, "DIM": dim, "PADDED": dim != head_dim, "EXACT": exact}
    if kind == "requests":
        return {**common, "ROWS": tile.rows, "RUNS": 1024, "LOCAL": False}
    tokens = {"ROWS": 16 if kind in FEW else tile.rows // 4, "GROUP": 4}
    if kind in BACKWARD:
        return {**common, **tokens, "FACTS": len(FACTS), "BANDED": True, BACKWARD[kind][1]: False}
    if kind == "routed":
        return {**common, **tokens, "BLOCK": 8}
    if kind in PROGRAMS:
        return {
            **common,
            **tokens,
            "BLOCKS": 16 if exact else 64 if head_dim <= 128 else 32,
            "BLOCK": 8,
            "PARTS": 1 if exact else 3,
            "SPREAD": True,
        }
    plain = {"FACTS": len(FACTS), "BANDED": False, "LISTED": True, "SINKS": False, "PRIORS": 0, "WITH_LSE": False}
    return {**common, **plain, **tokens, **PLANS[kind]}


def pointers(name: str, kind: str) -> str | None:
    """The type of a tensor argument; None for numbers."""
    return f"*{kind}" if name in HALVES else OTHERS.get(name)


def compiled(kind: str, capability: int, dtype: str, head_dim: int, tile: Tile | None = None) -> dict:
    exact = dtype == "float32"
    tile = tile or (backward_tile_for if kind in BACKWARD else tile_for)(head_dim, exact)
    program = BACKWARD[kind][0] if kind in BACKWARD else PROGRAMS.get(kind, programs.plan_program)
    values, signature, constexprs, attributes = constants(kind, head_dim, exact, tile), {}, {}, {}
    for place, parameter in enumerate(program.params):
        name, pointer = parameter.name, pointers(parameter.name, TYPES[dtype])
        signature[name] = "constexpr" if parameter.is_constexpr else pointer or ("fp32" if name in FLOATS else "i32")
        if parameter.is_constexpr:
            constexprs[(place,)] = values[name]
        elif pointer or name.startswith("stride") or (name == "head_dim" and head_dim % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(program, signature, constexprs, attributes)
    warps, stages = (4, 2) if kind in FEW and not exact else (tile.warps, tile.stages)
    options = {"num_warps": warps, "num_stages": stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return {"program": kind, "head_dim": head_dim, "dtype": dtype, "sm": capability, **figures(kernel)}


def figures(kernel) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", binary], capture_output=True, text=True, check=True)
        code = subprocess.run([TOOLS / "nvdisasm", binary], capture_output=True, text=True, check=True).stdout
    words = {
        "wgmma": "HGMMA",
        "mma": r"\bHMMA",
        "waits": r"WARPGROUP\.DEPBAR",
        "async_loads": r"LDGSTS.*\.128",
        "narrow_loads": r"LDGSTS(?!.*\.128)",
        "spill_stores": r"\bSTL",
        "spill_loads": r"\bLDL",
    }
    return {
        "registers": int(re.search(r"REG:(\d+)", usage.stdout + usage.stderr).group(1)),
        "shared": kernel.metadata.shared,
        **{name: len(re.findall(word, code)) for name, word in words.items()},
    }


if __name__ == "__main__":
    capability, dtype, *rest = sys.argv[1:]
    sizes = [int(word) for word in rest if word.isdigit()] or list(TILES)
    for head_dim in sizes:
        for kind in [word for word in rest if not word.isdigit()] or [*PLANS, *PROGRAMS]:
            print(json.dumps(compiled(kind, int(capability), dtype, head_dim)), flush=True)
