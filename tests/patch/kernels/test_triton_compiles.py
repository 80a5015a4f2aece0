"""The Triton programs as compiled for GPUs that need not be there: they compile, on tensor cores, without spilling."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "run_triton_compile.py"
SPEC = find_spec("triton")
TOOLS = Path(SPEC.origin).parent / "backends" / "nvidia" / "bin" if SPEC and SPEC.origin else Path()
pytestmark = pytest.mark.skipif(not (TOOLS / "ptxas").exists(), reason="needs Triton's compiler")


def compiled(*arguments):
    command = [sys.executable, "-W", "ignore", RUN, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(programs, spills):
    for found in programs:
        assert max(found["spill_stores"], found["spill_loads"]) <= spills, found
        assert found["shared"] <= {80: 163, 90: 227}[found["sm"]] * 1024, found
        if found["dtype"] != "float32":
            # Both products, and what is loaded by 16 bytes while they are computed; nothing else goes that way.
            assert found["wgmma" if found["sm"] == 90 else "mma"] >= 8, found
            assert found["async_loads"] >= 8 and found["narrow_loads"] == 0, found
            # In a loop whose products wait for each other, every one of them is followed by a wait.
            assert found["waits"] <= found["wgmma"] / 2, found


def test_the_program_for_head_dim_128_uses_wgmma_on_sm_90_and_does_not_spill():
    check(compiled(90, "bfloat16", 128, "plan"), spills=0)


def check_backward(programs):
    """They compile for tensor cores, fit, and spill a few registers at most."""
    assert {found["program"] for found in programs} == {"query-gradient", "key-gradient"}
    for found in programs:
        assert max(found["spill_stores"], found["spill_loads"]) <= 16, found
        assert found["shared"] <= {80: 163, 90: 227}[found["sm"]] * 1024, found
        assert found["dtype"] == "float32" or found["wgmma"] + found["mma"] >= 8, found


def test_the_backward_programs_for_head_dim_128_use_wgmma_on_sm_90():
    programs = compiled(90, "bfloat16", 128, "query-gradient", "key-gradient")
    check_backward(programs)
    assert all(found["wgmma"] >= 8 for found in programs)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("capability", [80, 90])
def test_every_backward_program_compiles(capability, dtype):
    check_backward(compiled(capability, dtype, 64, 80, 128, 256, "query-gradient", "key-gradient"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "capability,dtype,sizes,spills",
    [
        (90, "bfloat16", (64, 80, 128), 0),
        (90, "float16", (256,), 0),
        (90, "float32", (), 100),
        (80, "bfloat16", (64, 128), 16),
    ],
)
def test_every_program_compiles_without_spilling_beyond_a_bound(capability, dtype, sizes, spills):
    programs = compiled(capability, dtype, *sizes)
    assert len(programs) == 8 * (len(sizes) or 3)
    check(programs, spills)
