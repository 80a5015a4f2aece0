"""What was measured about kernels, per device: `auto` and `dense_below="crossover"` follow it.

Rules are JSON files of one format, each of one device: those shipped in `measured/`, and those that `sa_patch.tune`
writes into the user's cache folder for one device and one set of versions. The user's come first, then those shipped
for this device, then those of a CPU. Rules choose how something is computed, never which keys are seen.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sa_patch import machine
from sa_patch.patterns import Band, Blocks, Heads, Lines, Pattern, Scattered, Selected

FORMAT = 1
SHIPPED = Path(__file__).parent / "measured"
ANY = "any"
Steps = tuple[tuple[int | None, str], ...]

FALLBACK = "torch"  # runs what the kernel of a rule refuses
_MASKED_KEYS = 2048  # with few queries, a masked dense call only up to so many keys


@dataclass(frozen=True)
class Entry:
    """What was measured for tensors of one kind; None in the first four is any.

    Attributes:
        heads, kv_heads: of a layer.
        kernels: layout, "any" for all others -> the kernel by size: (up to so many tokens squared, name); the last
            step has no end. The size is query_len x length.
        crossover: layout -> (windows, tokens): sparse prefill is not faster than full up to max(windows x window,
            tokens).
        tiles: kernel -> the sizes it takes, in the order of its own type.
    """

    dtype: str | None
    head_dim: int | None
    heads: int | None
    kv_heads: int | None
    kernels: Mapping[str, Steps]
    crossover: Mapping[str, tuple[int, int]]
    tiles: Mapping[str, tuple[int, ...]]

    @property
    def group(self) -> int | None:
        """Query heads per kv head."""
        return self.heads // self.kv_heads if self.heads and self.kv_heads else None


@dataclass(frozen=True)
class Rules:
    """One file.

    Attributes:
        kind, device: torch's device type and the device's name.
        versions: of what the figures depend on, see `machine.identity`.
        source: where they come from, as the end of a sentence.
        sha256: of the file.
    """

    kind: str
    device: str
    versions: Mapping[str, str]
    source: str
    entries: tuple[Entry, ...]
    sha256: str


@dataclass(frozen=True)
class Choice:
    """What `auto` does for tensors of one kind on one device.

    Attributes:
        steps, rules: by layout, and whose they are.
        tiles: see `Entry`.
        borrowed: layouts for which nothing was measured on this device.
    """

    steps: Mapping[str, Steps]
    rules: Mapping[str, Rules]
    tiles: Mapping[str, tuple[int, ...]]
    borrowed: frozenset[str]

    def at(self, layout: str) -> Steps:
        return self.steps.get(layout, self.steps[ANY])

    def source(self, layout: str) -> Rules:
        return self.rules.get(layout, self.rules[ANY])

    def is_borrowed(self, layout: str) -> bool:
        return (layout if layout in self.steps else ANY) in self.borrowed


def layout_of(pattern: Pattern) -> str:
    """How the visible keys of a pattern lie in memory; variants declare theirs in the same words."""
    if isinstance(pattern, Heads):
        return layout_of(pattern.of_head[0])
    if isinstance(pattern, Selected):
        return "selected"
    if isinstance(pattern, Lines):
        return "lines"
    if pattern.sinks or pattern.local:
        return "merged"
    if isinstance(pattern, Band):
        return "window" if pattern.order is None else "permuted"
    if isinstance(pattern, Blocks) and pattern.selected is None:
        return "buckets"
    return "scattered" if isinstance(pattern, Scattered) else "routed"


def kernel_at(steps: Steps, query_len: int, length: int) -> str:
    """The kernel that the steps name for a pattern of this size."""
    for most, name in steps:
        fits = most is None or query_len * length <= most * most
        if fits and (name != "sdpa" or length <= max(_MASKED_KEYS, most or 0)):
            return name
    return FALLBACK


def choice_for(query: Tensor, key: Tensor) -> Choice:
    """The rules for [batch, heads, q, head_dim] and [batch, kv_heads, n, head_dim]."""
    return choice(query.device, query.dtype, query.shape[-1], max(1, query.shape[1] // key.shape[1]))


def choice(device: torch.device, dtype: torch.dtype, head_dim: int, group: int) -> Choice:
    """The rules for tensors of that kind."""
    return _choice(device.type, device.index, str(dtype).removeprefix("torch."), head_dim, group, True)


def default_choice(device: torch.device, dtype: torch.dtype, head_dim: int, group: int) -> Choice:
    """The rules for tensors of that kind without the user's file."""
    return _choice(device.type, device.index, str(dtype).removeprefix("torch."), head_dim, group, False)


@lru_cache(maxsize=256)
def _choice(kind: str, index: int | None, dtype: str, head_dim: int, group: int, with_users: bool) -> Choice:
    own = _of_device(kind, index) if with_users else _shipped_for(kind, index)
    steps: dict[str, Steps] = {}
    whose: dict[str, Rules] = {}
    tiles: dict[str, tuple[int, ...]] = {}
    borrowed: set[str] = set()
    for rules in [*own, shipped()["cpu"]]:
        entry = _nearest(rules, dtype, head_dim, group)
        for layout, found in (entry.kernels if entry else {}).items():
            if layout not in steps:
                steps[layout], whose[layout] = found, rules
                borrowed |= set() if rules in own else {layout}
        tiles = {**(entry.tiles if entry and rules in own else {}), **tiles}
    return Choice(steps, whose, tiles, frozenset(borrowed))


def _nearest(rules: Rules, dtype: str, head_dim: int, group: int) -> Entry | None:
    """The entry for these tensors whose group of heads is nearest; those that say what they are for come first."""
    fitting = [entry for entry in rules.entries if entry.dtype in (dtype, None) and entry.head_dim in (head_dim, None)]

    def distance(entry: Entry) -> tuple[bool, bool, float]:
        ratio = (entry.group or group) / group
        return entry.dtype is None, entry.head_dim is None, max(ratio, 1 / ratio)

    return min(fitting, key=distance, default=None)


def crossover(layout: str, window: int, device: torch.device, dtype: torch.dtype) -> int | None:
    """The prompt length up to which sparse prefill is not faster than full; None where that was not measured.

    Of several shapes of heads that were measured in this dtype, the longest.
    """
    name = str(dtype).removeprefix("torch.")
    for rules in _of_device(device.type, device.index):  # the user's first
        found = [
            entry.crossover[layout] for entry in rules.entries if entry.dtype == name and layout in entry.crossover
        ]
        if found:
            return max(max(windows * window, tokens) for windows, tokens in found)
    return None


def used(device: torch.device) -> str:
    """The rules that a device follows, with the hash of each file: for whoever keeps what was computed."""
    found = _of_device(device.type, device.index) or (shipped()["cpu"],)
    return "; ".join(f"{rules.source} (sha256 {rules.sha256[:16]})" for rules in found)


def ignored(device: torch.device) -> list[str]:
    """A line per file of the user's rules for this device that is not used, because a version has changed since."""
    if device.type not in ("cpu", "cuda") or users_file(device).exists():
        return []
    now = machine.identity(device)
    lines = []
    for file in sorted(folder().glob("*.json")) if folder().is_dir() else []:
        try:
            rules = parse(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if rules.device == now.name and dict(rules.versions) != now.versions:
            changed = [
                f"{name} {value} (now {now.versions.get(name)})"
                for name, value in rules.versions.items()
                if now.versions.get(name) != value
            ]
            lines.append(f"rules measured with {', '.join(changed)} are not used: run sa-eval tune again")
    return lines


def forget() -> None:
    """Read the files anew when they are next asked for."""
    for function in (_choice, _of_device):
        function.cache_clear()


@lru_cache(maxsize=64)
def _of_device(kind: str, index: int | None) -> tuple[Rules, ...]:
    """The rules that were measured on such a device, the user's first."""
    device = torch.device(kind) if index is None else torch.device(kind, index)
    own = _users(device)
    return (*(() if own is None else (own,)), *_shipped_for(kind, index))


def _shipped_for(kind: str, index: int | None) -> tuple[Rules, ...]:
    if kind == "cpu":
        return (shipped()["cpu"],)
    device = torch.device(kind) if index is None else torch.device(kind, index)
    here = shipped().get(machine.identity(device).name) if kind == "cuda" else None
    return () if here is None else (here,)


@lru_cache(maxsize=1)
def shipped() -> dict[str, Rules]:
    """Shipped rules by the device's name; a CPU's count for every CPU, under "cpu"."""
    found = [parse(file.read_text(encoding="utf-8")) for file in sorted(SHIPPED.glob("*.json"))]
    return {"cpu" if rules.kind == "cpu" else rules.device: rules for rules in found}


def folder() -> Path:
    """Where the user's rules are."""
    return machine.home() / "rules"


def users_file(device: torch.device) -> Path:
    """The user's file for this device and these versions."""
    return folder() / f"{machine.identity(device).slug}.json"


def _users(device: torch.device) -> Rules | None:
    """The user's rules; a file that can't be used is told of, and counts as none."""
    if device.type not in ("cpu", "cuda"):
        return None
    file = users_file(device)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return _refused(file, str(error))
    try:
        rules = parse(text)
    except ValueError as error:
        return _refused(file, str(error))
    now = machine.identity(device)
    if (rules.kind, rules.device, dict(rules.versions)) != (device.type, now.name, now.versions):
        return _refused(file, f"it was measured on {rules.device} with other versions")
    return rules


def _refused(file: Path, reason: str) -> None:
    warnings.warn(f"the kernel rules {file} are ignored: {reason}; run sa-eval tune again, or delete it", stacklevel=2)


def parse(text: str) -> Rules:
    """The rules that a file's text holds.

    Raises:
        ValueError: it is none; the reason is the end of a sentence.
    """
    try:
        held = json.loads(text)
        if held["format"] != FORMAT:
            raise ValueError(f"it has format {held['format']!r}, this release reads {FORMAT}")
        return Rules(
            kind=_text(held["kind"]),
            device=_text(held["device"]),
            versions={_text(name): _text(value) for name, value in held["versions"].items()},
            source=_text(held["source"]),
            entries=tuple(_entry(entry) for entry in held["entries"]),
            sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"it is no file of rules ({type(error).__name__}: {str(error)[:80]})") from error


def _entry(held: Mapping[str, Any]) -> Entry:
    return Entry(
        dtype=None if held["dtype"] is None else _text(held["dtype"]),
        **{name: None if held[name] is None else _count(held[name]) for name in ("head_dim", "heads", "kv_heads")},
        kernels={_text(layout): _steps(steps) for layout, steps in held["kernels"].items()},
        crossover={_text(layout): _pair(pair) for layout, pair in held["crossover"].items()},
        tiles={_text(name): tuple(_count(size) for size in sizes) for name, sizes in held["tiles"].items()},
    )


def _steps(held: list) -> Steps:
    steps = tuple((None if most is None else _count(most), _text(name)) for most, name in held)
    ends = [most or 0 for most, _ in steps[:-1]]
    if not steps or steps[-1][0] is not None or ends != sorted({*ends} - {0}):
        raise ValueError(f"its steps {held!r} do not grow to one without an end"[:120])
    return steps


def _pair(held: list) -> tuple[int, int]:
    windows, tokens = held
    return _count(windows, 0), _count(tokens, 0)


def _count(value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"it holds {str(value)[:40]!r} where a number is wanted")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"it holds {str(value)[:40]!r} where text is wanted")
    return value
