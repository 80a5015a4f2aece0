"""The table of kernels, the choice between them, and running one."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import import_module

import torch
from torch import Tensor

from sa_patch.errors import unknown
from sa_patch.kernels import rules
from sa_patch.kernels.base import Kernel, needs_gradients
from sa_patch.kernels.dense import causal
from sa_patch.patterns import Band, Heads, Pattern, Pieces

# name -> (module, class); imported on first use, so that optional dependencies stay optional.
KERNELS = {
    "torch": ("sa_patch.kernels.pytorch.kernel", "Torch"),
    "cpp": ("sa_patch.kernels.cpp.kernel", "Cpp"),
    "triton": ("sa_patch.kernels.triton.kernel", "Triton"),
    "flash": ("sa_patch.kernels.flash.kernel", "Flash"),
    "flex": ("sa_patch.kernels.flex.kernel", "Flex"),
    "sdpa": ("sa_patch.kernels.sdpa", "Sdpa"),
    "reference": ("sa_patch.kernels.reference", "Reference"),
}

_BACKWARD_UNMEASURED = {"triton"}  # `auto` follows measured rules, and no backward pass was measured on a GPU

_TOLD: set[str] = set()  # devices whose user was told, in this process, that nothing was measured


@lru_cache(maxsize=len(KERNELS))
def get(name: str) -> Kernel:
    """The kernel of that name, which must be in the table (see `check_name`). Kernels have no state."""
    module, attribute = KERNELS[name]
    return getattr(import_module(module), attribute)()


def choose(requested: str, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str:
    """The name of the kernel to run: the requested one, or for "auto" the first that takes the pattern.

    Raises:
        NotImplementedError: when the requested kernel (or, for "auto", every kernel) refuses the pattern.
    """
    name, refusal = requested, None
    tried = [requested] if requested != "auto" else _measured(pattern, query, key)
    if requested == "auto" and needs_gradients(query, key, value):
        tried = [name for name in tried if name not in _BACKWARD_UNMEASURED]
    for name in tried:
        refusal = get(name).refusal(pattern, query, key, value)
        if refusal is None:
            return name
    raise NotImplementedError(
        f"kernel {name!r} can't run this {type(pattern).__name__} pattern: {refusal}. "
        "Use kernel='auto', or kernel='reference' for short sequences"
    )


def _measured(pattern: Pattern, query: Tensor, key: Tensor) -> list[str]:
    """What `auto` tries, in this order. The rules are measured; they choose a way to compute, never other keys."""
    found, layout = rules.choice_for(query, key), rules.layout_of(pattern)
    name = rules.kernel_at(found.at(layout), pattern.query_len, pattern.length)
    if query.device.type == "cuda" and name != "sdpa" and found.is_borrowed(layout):
        _tell_unmeasured(query.device, str(query.dtype).removeprefix("torch."), query.shape[-1])
    return [name for name in dict.fromkeys([name, rules.FALLBACK, "sdpa"]) if name in KERNELS]


def _tell_unmeasured(device: torch.device, dtype: str, head_dim: int) -> None:
    if not _TOLD:
        name = torch.cuda.get_device_name(device)
        _TOLD.add(name)
        warnings.warn(
            f"kernel 'auto' follows a CPU's rules: nothing was measured for {dtype} and head_dim {head_dim} on {name}. "
            "`sa-eval tune`, or sa_patch.tune(model), takes a minute and finds the fastest kernels (said once per "
            "process)",
            stacklevel=2,
        )


Chooses = Callable[[Pattern, Tensor, Tensor, Tensor], Kernel]


def execute(
    requested: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    scaling: float,
    ran: Counter[str] | None = None,
) -> Tensor:
    """Attention to the keys that a pattern shows, dense parts included: [batch, heads, query_len, head_dim].

    Args:
        ran: counts the kernels that run, by name; "full" where the pattern is full attention.

    Raises:
        NotImplementedError: when the requested kernel refuses the pattern.
    """

    def chosen(piece: Pattern, *tensors: Tensor) -> Kernel:
        name = choose(requested, piece, *tensors)
        if ran is not None:
            ran[name] += 1
        return get(name)

    return run(chosen, query, key, value, pattern, scaling, shortcut=requested != "reference")


def run(
    chosen: Chooses, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float, *, shortcut=True
) -> Tensor:
    """`execute` with the kernel that `chosen` returns for a pattern, or for each of its pieces.

    Args:
        shortcut: patterns that show everything are left to PyTorch's full attention.
    """
    if isinstance(pattern, Heads):
        of_head = zip(query.split(pattern.group, dim=1), key.split(1, dim=1), value.split(1, dim=1), strict=True)
        outputs = [
            run(chosen, *tensors, one, scaling, shortcut=shortcut)
            for tensors, one in zip(of_head, pattern.of_head, strict=True)
        ]
        return torch.cat(outputs, dim=1)
    if isinstance(pattern, Pieces):
        sparse = [piece for piece in pattern.pieces if not piece.covers_all]
        whole = chosen(sparse[-1], query, key, value) if sparse and shortcut else None
        if whole is not None and whole.joins and whole.refusal(pattern, query, key, value) is None:
            return whole(query, key, value, pattern, scaling)
        outputs = []
        for piece in pattern.pieces:
            rows = query[:, :, piece.first - pattern.first : piece.length - pattern.first]
            seen = key[:, :, : piece.length], value[:, :, : piece.length]
            outputs.append(run(chosen, rows, *seen, piece, scaling, shortcut=shortcut))
        return torch.cat(outputs, dim=2)
    # The reference takes no short cut, because the others are compared with it.
    if pattern.covers_all and shortcut:
        return causal(query, key, value, scaling)
    kernel = chosen(pattern, query, key, value)
    if not pattern.tail or kernel.masks:
        return kernel(query, key, value, pattern, scaling)
    output = kernel(query, key, value, replace(pattern, tail=0), scaling)
    tail = causal(query[:, :, -pattern.tail :], key, value, scaling)
    return torch.cat([output[:, :, : -pattern.tail], tail], dim=2)


def check_name(name: str) -> None:
    """Raise ValueError unless a kernel (or "auto") has that name."""
    if name != "auto" and name not in [*KERNELS]:  # a list: `name` may be anything
        raise unknown("kernel", name, ["auto", *KERNELS])


def crossover(layout: str, window: int, device: torch.device, dtype: torch.dtype) -> int:
    """The prompt length up to which sparse prefill is not faster than full attention.

    Args:
        layout: how the visible keys lie in memory, see `rules.layout_of`.

    Raises:
        NotImplementedError: on devices and in dtypes where it was not measured.
    """
    found = rules.crossover(layout, window, device, dtype)
    if found is None:
        raise NotImplementedError(
            f"dense_below='crossover' has not been measured on this {device.type!r} device in "
            f"{str(dtype).removeprefix('torch.')}: give a number of tokens, or measure it (sa-eval tune)"
        )
    return found


def describe(
    requested: str, layouts: Sequence[str], device: torch.device, dtype: torch.dtype, head_dim: int, group: int
) -> str:
    """Which kernel runs at which prompt length and why, in one line.

    Args:
        layouts: of the patterns, see `rules.layout_of`.
        group: query heads per kv head.
    """
    if requested != "auto":
        return f"kernel {requested}, as asked for"
    found = rules.choice(device, dtype, head_dim, group)
    reasons: dict[str, list[str]] = {}
    for layout in layouts or [rules.ANY]:
        source = found.source(layout).source
        why = f"nothing was measured here: rules {source}" if found.is_borrowed(layout) else source
        reasons.setdefault(f"{steps_text(found.at(layout))}: {why}", []).append(layout)
    each = [f"{' and '.join(named)}: {text}" if len(reasons) > 1 else text for text, named in reasons.items()]
    return "; ".join([f"kernel auto: {'; '.join(each)}", *rules.ignored(device)])


def steps_text(steps: rules.Steps) -> str:
    """The kernels by prompt length, in words."""
    each = [f"{_called(name)} up to {most:,} tokens" for most, name in steps if most is not None]
    last = _called(steps[-1][1])
    return ", ".join([*each, f"{last} beyond" if each else last])


def _called(name: str) -> str:
    return "sdpa with a mask" if name == "sdpa" else name


def refusals(length: int, device: torch.device) -> dict[str, str]:
    """The kernels that refuse prompts of this length on this device, and why."""
    pattern, nothing = Band(length=length, query_len=length, width=1), torch.empty(0, device=device)
    if pattern.covers_all:
        return {}
    reasons = {name: get(name).refusal(pattern, nothing, nothing, nothing) for name in KERNELS}
    return {name: reason for name, reason in reasons.items() if reason}
