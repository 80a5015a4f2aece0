"""Measuring which kernel is right and fastest on the device at hand, and keeping it as rules that `auto` follows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sa_patch import kernels
from sa_patch.kernels import rules
from sa_patch.tuning.arms import declared_arms
from sa_patch.tuning.report import text
from sa_patch.tuning.search import Search, Shape
from sa_patch.tuning.writing import save

# Heads, kv heads and head_dim, lengths and windows where nothing is given: those of common models.
_GPU = (32, 8, 128), (1024, 2048, 4096, 8192, 16_384, 32_768), (128, 512)
_CPU = (8, 2, 64), (256, 512, 1024, 2048, 4096), (64, 256)
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, repr=False)
class Tuned:
    """What was found: shown when it is printed.

    Attributes:
        path: the file of rules.
        seconds: what finding them took.
        wrong: kernels that were not right on this device, which are never taken, and how far off they were.
        left_out: what there was no time for.
    """

    path: Path
    seconds: float
    wrong: dict[str, str]
    left_out: tuple[str, ...]
    text: str

    def __repr__(self) -> str:
        return self.text


def tune(
    model: nn.Module | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    lengths: Sequence[int] | None = None,
    windows: Sequence[int] | None = None,
    seconds: float = 60.0,
    kernels: Sequence[str] | None = None,
    out: str | Path | None = None,
    progress: Callable[[str, float], None] = lambda text, seconds: None,
) -> Tuned:
    """Verify every kernel on this device against the reference, time those that are right beside full attention, and
    keep the fastest as rules that `kernel="auto"` and `dense_below="crossover"` follow from then on.

    A kernel takes the place of the default only where it is faster by more than the readings scatter. Choosing never
    changes which keys are seen. Nothing leaves the machine.

    Args:
        model: takes device, dtype and heads from it; what is given beside it wins.
        device: "cpu" or "cuda", or one of several GPUs; a GPU where there is one.
        dtype: float32 on a CPU, else bfloat16.
        heads, kv_heads, head_dim: of a layer.
        lengths, windows: in tokens.
        seconds: the budget. Triton and FlexAttention compile a program in 4 to 20 s when it is first used, and keep it:
            a second run gets further.
        kernels: those to try; all where None.
        out: write the rules to this file instead of the cache folder (see `SA_PATCH_HOME`), where `auto` looks.
        progress: called with what is done now, and the seconds spent.

    Raises:
        ValueError: for a device, dtype, size or kernel that there is none of.
    """
    shape = _shape(model, device, dtype, heads, kv_heads, head_dim)
    _, usual_lengths, usual_windows = _GPU if shape.device.type == "cuda" else _CPU
    chosen_windows = sorted({_positive("windows", window) for window in windows or usual_windows})
    chosen_lengths = sorted({_positive("lengths", length) for length in lengths or usual_lengths})
    if chosen_lengths[-1] <= chosen_windows[0]:
        raise ValueError(f"no length is longer than a window: lengths {chosen_lengths}, windows {chosen_windows}")
    if not seconds > 0:
        raise ValueError(f"seconds must be above 0, got {seconds!r}")
    search = Search(
        shape, declared_arms(), _names(kernels), breadth_first(chosen_lengths), chosen_windows, float(seconds)
    )
    search.tell = lambda text: progress(text, search.seconds - search.left())
    search.run()
    spent = search.seconds - search.left()
    path = save(search, spent, Path(out) if out is not None else rules.users_file(shape.device))
    rules.forget()
    wrong = {name: reason for name, reason in search.wrong().items()}
    return Tuned(path, spent, wrong, tuple(search.left_out), text(search, spent, path))


def breadth_first(lengths: Sequence[int]) -> list[int]:
    """The middle one, the ends, then what lies between: what a short budget should measure first."""
    middle = lengths[len(lengths) // 2]
    return list(dict.fromkeys([middle, lengths[0], lengths[-1], *lengths]))


def _shape(
    model: nn.Module | None,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    heads: int | None,
    kv_heads: int | None,
    head_dim: int | None,
) -> Shape:
    own: tuple[int, int, int] | None = None
    if model is not None:
        from sa_patch import integration

        own_device, own_dtype = integration.device_and_dtype(model)
        device, dtype = device or own_device, dtype or own_dtype
        own = integration.heads_of(model)
    where = _device(device)
    own = own or (_GPU if where.type == "cuda" else _CPU)[0]
    query_heads = _positive("heads", own[0] if heads is None else heads)
    key_heads = _positive("kv_heads", min(own[1], query_heads) if kv_heads is None else kv_heads)
    if query_heads % key_heads:
        raise ValueError(f"heads must be a multiple of kv_heads, got {query_heads} and {key_heads}")
    precision = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    return Shape(where, _dtype(precision), query_heads, key_heads, _positive("head_dim", head_dim or own[2]))


def _device(asked: str | torch.device | None) -> torch.device:
    try:
        found = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device {asked!r} is none: give cpu or cuda") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device {str(found)!r} can't be timed: give cpu or cuda")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {str(found)!r} is not there: this machine has {torch.cuda.device_count()} GPUs")
    return found


def _dtype(asked: str | torch.dtype) -> torch.dtype:
    name = str(asked).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return getattr(torch, name)


def _names(asked: Sequence[str] | None) -> list[str]:
    known = [name for name in kernels.KERNELS if name != "reference"]
    for name in asked or ():
        kernels.check_name(name)
    return known if asked is None else [name for name in known if name in {*asked, rules.FALLBACK}]


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be whole numbers above 0, got {value!r}")
    return value
