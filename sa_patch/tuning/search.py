"""The search for the fastest right kernels, within a budget of seconds.

Groups of kernels, those that compile nothing first. In each, every arm is verified against the reference and then read
at one length; the other lengths follow while time is left. What was not reached is said.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from sa_patch import kernels
from sa_patch.kernels import rules
from sa_patch.kernels.base import Kernel, Sized
from sa_patch.patterns import Pattern
from sa_patch.probing import make_pattern, pieces_of
from sa_patch.tuning import timing
from sa_patch.tuning.arms import Arm
from sa_patch.tuning.choosing import FULL, Cell, chosen
from sa_patch.tuning.parity import allowed_error, error, exact_output
from sa_patch.variants.base import Variant

OK, REFUSED, WRONG, FAILED, LEFT_OUT = "ok", "refused", "wrong", "failed", "left out"
_VERIFIED_GROUPS = 2  # kv heads of a small case
_RESERVE = 3  # readings of a call that must fit into the time left, or it is not begun
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Shape:
    """The tensors to measure with."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def scaling(self) -> float:
        return self.head_dim**-0.5

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.heads // self.kv_heads

    def tensors(self, length: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random query, key and value with that many kv heads."""
        source = torch.Generator(self.device).manual_seed(length)
        counts, more = (kv_heads * self.group, kv_heads, kv_heads), {"device": self.device, "dtype": self.dtype}
        made = (torch.randn(1, count, length, self.head_dim, generator=source, **more) for count in counts)
        query, key, value = made
        return query, key, value


@dataclass(frozen=True)
class Case:
    """A small prompt of an arm, with what the reference gives and how far a kernel may be from it."""

    pattern: Pattern
    tensors: tuple[Tensor, Tensor, Tensor]
    exact: Tensor
    allowed: float


@dataclass(frozen=True)
class Verdict:
    """What a kernel did in an arm's small cases."""

    status: str
    text: str = ""


@dataclass
class Search:
    """What is asked, and what was found so far.

    Attributes:
        names: kernels, in the order of the table.
        lengths, windows: in tokens; the first length is read first.
        seconds: the budget.
        verdicts: (kernel, arm) -> what verifying showed; none where it was not reached.
        left_out: what there was no time for.
        tiles: kernel -> the sizes that were faster than its own.
    """

    shape: Shape
    arms: Sequence[Arm]
    names: Sequence[str]
    lengths: Sequence[int]
    windows: Sequence[int]
    seconds: float
    tell: Tell = lambda text: None
    clock: Callable[[], float] = time.perf_counter
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    tiles: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _start: float = 0.0
    _cases: dict[tuple[str, int], Case] = field(default_factory=dict)
    _compiled: dict[str, float] = field(default_factory=dict)  # the longest first call of a kernel
    _took: dict[tuple[str, str, int], tuple[int, float]] = field(default_factory=dict)  # (length, seconds) of a call
    _failures: dict[int, set[tuple[str, str, int]]] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds of the budget."""
        return self.seconds - (self.clock() - self._start)

    def run(self) -> None:
        """Verify and time; what there was no time for is in `left_out`."""
        self._start = self.clock()
        device = self.shape.device
        here = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with torch.no_grad(), here:
            self._run()

    def _run(self) -> None:
        for group in self.groups():
            self._run_group(group)
        for arm in self.arms:
            if not arm.timed:
                self._verified(arm, [name for group in self.groups() for name in group])
        for name in self.names:
            self._try_sizes(name)

    def groups(self) -> list[list[str]]:
        """The kernels that compile nothing together, then each of the others."""
        known = {name: compile_seconds(kernels.get(name)) for name in self.names}
        slow = sorted((name for name in known if known[name]), key=lambda name: known[name])
        return [group for group in ([name for name in known if not known[name]], *([name] for name in slow)) if group]

    # --- right -----------------------------------------------------------------------------------------------------

    def trusted(self, name: str) -> bool:
        """Whether a kernel was right wherever it ran: one that was wrong anywhere is not taken at all."""
        own = [verdict.status for (kernel, _), verdict in self.verdicts.items() if kernel == name]
        return OK in own and not {WRONG, FAILED} & {*own}

    def wrong(self) -> dict[str, str]:
        """The kernels that were wrong or failed, and where."""
        found: dict[str, str] = {}
        for (name, _), verdict in self.verdicts.items():
            if verdict.status in (WRONG, FAILED):
                found.setdefault(name, verdict.text)
        return found

    def refusals(self) -> dict[str, str]:
        """The kernels that refused every arm, and why."""
        reasons: dict[str, str] = {}
        ran = {name for (name, _), verdict in self.verdicts.items() if verdict.status != REFUSED}
        for (name, _), verdict in self.verdicts.items():
            if name not in ran:
                reasons.setdefault(name, verdict.text)
        return reasons

    def covered(self, name: str, layout: str, *, strict: bool) -> bool:
        """Whether the kernel was verified on every arm of that layout, but those that it refuses.

        Args:
            strict: an arm that was not reached counts against it.
        """
        here = [self.verdicts.get((name, arm.name)) for arm in self.arms if layout in arm.kinds]
        return all(not strict if verdict is None else verdict.status in (OK, REFUSED) for verdict in here)

    def _verified(self, arm: Arm, names: Sequence[str]) -> list[str]:
        """Those of the kernels that are right in the arm's small cases; the others are noted."""
        for name in names:
            if (name, arm.name) in self.verdicts or not self._has_time(name):
                continue
            self.tell(f"verifying {name} on {arm.name}")
            start = self.clock()
            self.verdicts[name, arm.name] = self._verify(kernels.get(name), arm)
            self._compiled[name] = max(self._compiled.get(name, 0.0), self.clock() - start)
        found = []
        for name in names:
            verdict = self.verdicts.get((name, arm.name))
            if verdict is None:
                self._leave_out(f"{name} on {arm.name}: not verified")
            elif verdict.status == OK:
                found.append(name)
        return found

    def _has_time(self, name: str) -> bool:
        return self.left() > self._compiled.get(name, compile_seconds(kernels.get(name)))

    def _verify(self, kernel: Kernel, arm: Arm) -> Verdict:
        refusal = None
        for window in self.windows if arm.timed else [int(arm.variant.window)]:
            case = self._case(arm, window)
            refusal = refusal or self._refusal(kernel, case.pattern, case.tensors)
            if refusal:
                continue
            verdict = self._compare(kernel, case, f"{arm.name} at window {window}")
            if verdict.status != OK:
                return verdict
        return Verdict(REFUSED, refusal) if refusal else Verdict(OK)

    def _refusal(self, kernel: Kernel, pattern: Pattern, tensors: Sequence[Tensor]) -> str | None:
        query, key, value = tensors
        reasons = (kernel.refusal(piece, query, key, value) for piece in pieces_of(pattern))
        return next((reason for reason in reasons if reason), None)

    def _case(self, arm: Arm, window: int) -> Case:
        """Made once for all kernels."""
        key = arm.name, window
        if key not in self._cases:
            tensors = self.shape.tensors(2 * window + 45, min(_VERIFIED_GROUPS, self.shape.kv_heads))
            pattern = make_pattern(arm.at(window), *tensors[:2])
            exact = exact_output(*tensors, pattern, self.shape.scaling)
            allowed = allowed_error(*tensors, pattern, self.shape.scaling, exact)
            self._cases[key] = Case(pattern, tensors, exact, allowed)
        return self._cases[key]

    def _compare(self, kernel: Kernel, case: Case, where: str) -> Verdict:
        try:
            output = kernels.run(lambda *_: kernel, *case.tensors, case.pattern, self.shape.scaling)
            found = error(output, case.exact)
        except Exception as trouble:  # compilers fail in many ways; the others go on
            return Verdict(FAILED, f"{where}: {type(trouble).__name__}: {str(trouble).strip()[:200]}")
        if found <= case.allowed:
            return Verdict(OK)
        return Verdict(WRONG, f"{where}: off by {found:.3g}, {case.allowed:.3g} is allowed")

    # --- fast ------------------------------------------------------------------------------------------------------

    def default_at(self, layout: str, length: int) -> str:
        """The kernel that runs there without a rule of the user's; the first trusted one where that is not right."""
        shape = self.shape
        default = rules.default_choice(shape.device, shape.dtype, shape.head_dim, shape.group).at(layout)
        name = rules.kernel_at(default, length, length)
        order = [name, rules.FALLBACK, *self.names]
        return next((other for other in order if self.trusted(other)), name)

    def choices(self, *, strict: bool = False) -> dict[tuple[str, int], str]:
        """(layout, length) -> the kernel to run, from what was read so far; see `covered`."""
        found = {}
        for layout in {cell.layout for cell in self.cells}:
            known = [name for name in self.names if self.trusted(name)]
            order = [name for name in known if self.covered(name, layout, strict=strict)]
            found |= chosen([cell for cell in self.cells if cell.layout == layout], order, self.default_at)
        return found

    def _run_group(self, group: Sequence[str]) -> None:
        timed = [arm for arm in self.arms if arm.timed]
        first, *rest = self.lengths
        full = Full(self.shape)
        for arm in timed:
            right = self._verified(arm, self._with_defaults(arm, group))
            self._read(arm, first, right, full)
        for length in rest:
            for arm in timed:
                self._read(arm, length, self._verified(arm, self._with_defaults(arm, group)), full)

    def _with_defaults(self, arm: Arm, group: Sequence[str]) -> list[str]:
        """The group, and what it is held against."""
        known, names = self.choices(), []
        for layout, length in ((layout, length) for layout in arm.kinds for length in self.lengths):
            names.append(known.get((layout, length)) or self.default_at(layout, length))
        return list(dict.fromkeys([*names, *group]))

    def _read(self, arm: Arm, length: int, right: Sequence[str], full: "Full") -> None:
        """One arm at one length, at every window: full attention, what would be chosen, and the group, in turns."""
        for window in self.windows:
            if window >= length:
                continue
            where = f"{arm.name} at {length:,} tokens and window {window}"
            if self.left() <= 0:
                self._leave_out(where)
                continue
            self.tell(f"timing {where}")
            tensors = full.tensors(length)
            calls, refused = self._calls(arm, window, right, tensors)
            warm = {name: self._warm(name, arm, window, length, call) for name, call in calls.items()}
            warm = {name: seconds for name, seconds in warm.items() if seconds is not None}
            if not warm:
                self._leave_out(where)
                continue
            refused |= {name for name in calls if (name, arm.name, window) in self._failed_at(length)}
            hopeless = {name for name, seconds in warm.items() if seconds > timing.HOPELESS * min(warm.values())}
            close = {name: calls[name] for name in warm if name not in hopeless}
            close[FULL] = full.call(length)
            readings = timing.in_turns(close, self.shape.device, lambda: self.left() > 0)
            readings |= {name: timing.single(warm[name]) for name in hopeless}
            kind, pieces = arm.kinds[-1], arm.pieces
            self.cells.append(Cell(arm.name, arm.layouts, kind, pieces, length, window, readings, frozenset(refused)))

    def _calls(
        self, arm: Arm, window: int, names: Sequence[str], tensors: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[dict[str, timing.Call], set[str]]:
        variant = arm.at(window)
        pattern = make_pattern(variant, *tensors[:2])
        calls, refused = {}, set()
        for name in self.names:
            verdict = self.verdicts.get((name, arm.name))
            known = verdict is not None and verdict.status != OK
            if known or (name in names and self._refusal(kernels.get(name), pattern, tensors)):
                refused.add(name)
            elif name in names:
                calls[name] = partial(self._attend, kernels.get(name), variant, tensors)
        return calls, refused

    def _attend(self, kernel: Kernel, variant: Variant, tensors: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """What a layer does: choosing the keys is part of it."""
        pattern = make_pattern(variant, *tensors[:2])
        return kernels.run(lambda *_: kernel, *tensors, pattern, self.shape.scaling)

    def _warm(self, name: str, arm: Arm, window: int, length: int, call: timing.Call) -> float | None:
        """Seconds of one call, if the budget has room for it and its readings; None where it has not, or it fails."""
        key = name, arm.name, window
        before, taken = self._took.get(key, (length, 0.0))
        if _RESERVE * taken * max(1.0, length / before) > self.left():
            self._leave_out(f"{name} on {arm.name} at {length:,} tokens and window {window}")
            return None
        try:
            timing.once(call, self.shape.device)  # compiles, and makes what is kept
            taken = timing.once(call, self.shape.device)
        except Exception as trouble:  # out of memory at this length, say
            self._failed_at(length).add(key)
            self.left_out.append(f"{name} on {arm.name} at {length:,} tokens failed: {type(trouble).__name__}")
            return None
        self._took[key] = length, taken
        return taken if _RESERVE * taken <= self.left() else None

    def _failed_at(self, length: int) -> set[tuple[str, str, int]]:
        return self._failures.setdefault(length, set())

    def _leave_out(self, text: str) -> None:
        if text not in self.left_out:
            self.left_out.append(text)

    # --- sizes -----------------------------------------------------------------------------------------------------

    def _try_sizes(self, name: str) -> None:
        """Other sizes of a kernel that is chosen somewhere, on the arms that it runs, at one length."""
        kernel = kernels.get(name)
        length = self.lengths[0]
        arms = [arm for arm in self.arms if arm.timed and self._runs(name, arm, length)]
        if not arms or not isinstance(kernel, Sized):
            return
        best = kernel
        for sizes in kernel.candidates(self.shape.head_dim, self.shape.dtype):
            if not self._has_time(name):
                self._leave_out(f"{name} with sizes {sizes}")
                continue
            other = kernel.sized(sizes)
            cells = list(self._beside(other, best, arms, length, name, sizes))
            if len(cells) == len(arms) and _is_better(cells):
                best, self.tiles[name] = other, sizes

    def _runs(self, name: str, arm: Arm, length: int) -> bool:
        verdict = self.verdicts.get((name, arm.name))
        chosen_here = [self.choices().get((kind, length)) for kind in arm.kinds]
        return verdict is not None and verdict.status == OK and name in chosen_here

    def _beside(
        self, other: Kernel, best: Kernel, arms: Sequence[Arm], length: int, name: str, sizes: tuple[int, ...]
    ) -> Iterator[Mapping[str, timing.Reading]]:
        """Readings of other sizes beside the best so far, arm by arm, until they are wrong or fail, or time ends."""
        tensors = self.shape.tensors(length, self.shape.kv_heads)
        for arm in arms:
            if not self._has_time(name):
                return self._leave_out(f"{name} with sizes {sizes}")
            self.tell(f"{name} with sizes {sizes} on {arm.name}")
            start = self.clock()
            if self._verify(other, arm).status != OK:
                return None
            self._compiled[name] = max(self._compiled.get(name, 0.0), self.clock() - start)
            variant = arm.at(self.windows[-1])
            calls = {"best": partial(self._attend, best, variant, tensors)}
            calls["other"] = partial(self._attend, other, variant, tensors)
            try:
                for call in calls.values():
                    timing.once(call, self.shape.device)
                yield timing.in_turns(calls, self.shape.device, lambda: self.left() > 0)
            except Exception:  # out of shared memory or registers: said by Triton in many ways
                return None
        return None


def _is_better(cells: Sequence[Mapping[str, timing.Reading]]) -> bool:
    faster = any(cell["other"].is_faster(cell["best"]) for cell in cells)
    return faster and not any(cell["best"].is_faster(cell["other"]) for cell in cells)


def compile_seconds(kernel: Kernel) -> float:
    """About how long a kernel's first call for a new kind of pattern takes; 0 where nothing is compiled."""
    return float(getattr(kernel, "compile_seconds", 0.0))


class Full:
    """Tensors and full attention of one length at a time."""

    def __init__(self, shape: Shape) -> None:
        self._shape, self._length = shape, 0

    def tensors(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        if length != self._length:
            self._length, self._tensors = length, self._shape.tensors(length, self._shape.kv_heads)
            self._call = timing.fastest_full(*self._tensors)
        return self._tensors

    def call(self, length: int) -> timing.Call:
        self.tensors(length)
        return self._call
