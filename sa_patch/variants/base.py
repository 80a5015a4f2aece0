"""What a variant is: a frozen description of who may see whom, turned into a pattern for every sequence and layer.

To add one, subclass `Variant`, say what `sparse_pattern` and `sparse_budget` are, and pass an instance to
`sa_patch.apply(model, variant=...)`. Imports torch only.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from sa_patch.budget import LayerBudget
from sa_patch.geometry import Group
from sa_patch.patterns import Dense, Pattern
from sa_patch.variants.options import option, options_of

CPU = torch.device("cpu")
SINKS = 4  # of variants with sinks of their own, in windows that have room for them
BLOCK_SIZE_HELP = "tokens per block; none: for moba what matches the budget, for routed 8"
ROUTER_COST_HELP = "reported: the router's products are told; charged: the window pays"
CHARGED_REASON = "router_cost='charged' needs the prompt's length (leave it out)"

# What a comparison does with it: a method is what is asked about; baselines and controls are what it is held against.
Role = Literal["method", "baseline", "control"]


# What the keys of a head depend on beside itself: its number in the layer, or all of the layer's heads.
HeadDependent = Literal["no", "number", "all"]


@dataclass(frozen=True)
class Form:
    """A further name of a variant under `mode=`: some of its options fixed, and a line of help."""

    help: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Window, sinks and local window of one sequence, in tokens, fractions resolved."""

    window: int
    sinks: int
    local: int


class Common(TypedDict):
    """The fields of `Pattern` that every variant fills alike."""

    length: int
    query_len: int
    sinks: int
    local: int
    tail: int


@dataclass(frozen=True, kw_only=True)
class Variant(ABC):
    """Options all variants share. `window` is the one dial: the budget in keys per query, the query included."""

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    help: ClassVar[str] = ""  # one line for lists of modes
    role: ClassVar[Role] = "method"
    seeded: ClassVar[bool] = False  # True where `seed` decides which keys are seen
    untrained: ClassVar[bool] = False  # True where it was made for training that has not happened
    caveat: ClassVar[str] = ""  # what a reader of results must know about it, as a clause
    forms: ClassVar[Mapping[str, Form]] = {}  # more names under `mode=`; a class does not inherit them
    always_dense: ClassVar[bool] = False
    layout: ClassVar[str] = "merged"  # how the visible keys lie in memory, see kernels.rules
    head_dependent: ClassVar[HeadDependent] = "no"
    prefix_consistent: ClassVar[bool] = False  # True where a token's keys don't depend on the tokens after it
    defaults: ClassVar[Mapping[str, Any]] = {"sinks": 0}  # what None stands for, where it depends on nothing else

    window: int | float = option(
        512, "keys per query, the query included; 0 < x < 1 is a fraction of the prompt", minimum=1, told="w{}"
    )
    seed: int = option(0, "seed of the random keys (only variants with random keys use it)", minimum=None, swept=False)
    budget: Literal["pairs", "nominal"] = option(
        "pairs",
        "pairs: match the (query, key) pairs of swa at this window; nominal: the textbook parameters",
        swept=False,
        outside_budget=True,
    )
    dense_tail: int = option(0, "last queries of the prompt that see everything", told="tail{}")
    sinks: int | float = option(
        None,
        "first tokens visible to everyone; tokens, or a fraction of the prompt; none: 0 (routed, vertical-slash: 4)",
        optional=True,
    )
    local: int | float = option(
        0,
        "last keys visible, the query included; tokens, or a fraction; 0: for routed (at least), vertical-slash w/4",
    )
    dense_layers: tuple[int, ...] = option(
        (), "layers left full; negative numbers count from the end", outside_budget=True, told="dense_{}"
    )
    dense_below: int | Literal["crossover"] = option(
        0,
        "prompts up to this length stay full; crossover: up to where that is faster",
        outside_budget=True,
        told="below{}",
    )
    decode: Literal["full", "sparse"] = option(
        "full",
        "full: generated tokens read the whole cache; sparse: their own row of the pattern",
        outside_budget=True,
        told="decode_{}",
    )

    def __post_init__(self) -> None:
        for item in options_of(type(self)):
            value = getattr(self, item.name)
            item.check(value)
            if isinstance(value, list):
                object.__setattr__(self, item.name, tuple(value))
            elif value is None and item.name in self.defaults:
                object.__setattr__(self, item.name, self.defaults[item.name])
        self._check_extras()
        _ = self.spec  # now: while a compiler traces, numbers may be symbols

    @cached_property
    def spec(self) -> str:
        """Name and options as text, for compiled models."""
        return f"{self.name} {self.options()!r}"

    def _check_extras(self) -> None:
        """Under a matched budget, sinks and local must leave room for at least the query itself."""
        kinds = {type(size) for size in (self.window, self.sinks, self.local) if size}
        if self.budget != "pairs" or len(kinds) > 1:  # tokens and fractions meet once the length is known
            return
        if self.sinks + max(self.local, 0 if isinstance(self.window, float) else 1) > self.window:
            raise ValueError(
                f"sinks={self.sinks} and local={self.local} alone exceed the budget of window={self.window} "
                "keys per query: raise window, lower them, or use budget='nominal'"
            )

    @property
    def branches(self) -> tuple["Variant", ...]:
        """The variants whose outputs a layer adds up, each times a gate of the model; mostly the variant itself."""
        return (self,)

    def whole_prompt_reason(self) -> str | None:
        """Why a prompt has to come in one call, as a clause of an error message; None where pieces give the same.

        Where it is None, a token's keys don't depend on how many tokens follow or how they were grouped into calls.
        """
        if not self.prefix_consistent:
            return f"the keys of {self.name!r} depend on the whole prompt"
        sizes = {"window": self.window, "sinks": self.sinks, "local": self.local}
        fractions = [f"{name}={value}" for name, value in sizes.items() if isinstance(value, float)]
        if fractions:
            return f"{', '.join(fractions)} is a fraction of the whole prompt (give tokens)"
        if self.dense_tail:
            return f"dense_tail={self.dense_tail} counts from the prompt's end (leave it out)"
        if self.dense_below:
            return f"dense_below={self.dense_below!r} asks for the whole prompt's length (leave it out)"
        return None

    def piece_reason(self, first: int) -> str | None:
        """Why a piece of a prompt that begins at position `first` is refused, likewise; None where it is not."""
        return self.whole_prompt_reason()

    def window_at(self, length: int) -> int:
        """The window in tokens for a sequence of `length` tokens."""
        return _tokens(self.window, length, 1)

    def sizes(self, length: int) -> Sizes:
        """Options in tokens for a sequence of `length` tokens.

        Raises:
            ValueError: when sinks and local leave no room in the window at this length.
        """

        sizes = Sizes(self.window_at(length), _tokens(self.sinks, length, 0), _tokens(self.local, length, 0))
        if self.budget == "pairs" and sizes.window < length and sizes.sinks + max(sizes.local, 1) > sizes.window:
            raise ValueError(
                f"at {length} tokens, sinks={self.sinks} ({sizes.sinks} tokens) and local={self.local} ({sizes.local}) "
                f"leave nothing of window={self.window} ({sizes.window}): raise window, lower them, or budget='nominal'"
            )
        return sizes

    @abstractmethod
    def sparse_pattern(self, group: Group, layer_idx: int, query: Tensor | None, key: Tensor | None) -> Pattern:
        """The pattern of a sequence, dense layers and short prompts aside.

        Args:
            group: lengths and device.
            query: [rows, heads, query_len, head_dim] and key: [rows, kv_heads, length, head_dim], or None where only
                the shape of the pattern is asked for; variants that need them raise.
        """

    @abstractmethod
    def sparse_budget(self, length: int, layer_idx: int) -> LayerBudget:
        """What one sparse layer of this variant costs on a prompt of `length` tokens."""

    def heads_budget(self, length: int, layer_idx: int, kv_heads: int) -> LayerBudget:
        """`sparse_budget` of a layer with so many kv heads, for variants whose heads see different numbers of keys."""
        return self.sparse_budget(length, layer_idx)

    def counted(self, length: int, layer_idx: int, kv_heads: int = 1) -> LayerBudget:
        """`sparse_budget` for variants whose pattern doesn't depend on content: count the pattern itself.

        Args:
            kv_heads: of the layer; where heads see other keys, the pairs are their mean.
        """
        pattern = self.sparse_pattern(Group(length, length, CPU, kv_heads=kv_heads), layer_idx, None, None)
        return LayerBudget(layer_idx, "sparse", pattern.count())

    def common(self, group: Group, sizes: Sizes, after: int = 0) -> Common:
        """What every pattern of this variant starts from: lengths, sinks, local window and dense tail.

        Args:
            after: queries of the same call that come after this group's.
        """
        return {
            "length": group.length,
            "query_len": group.query_len,
            "sinks": sizes.sinks,
            "local": sizes.local,
            "tail": min(max(0, self.dense_tail - after), group.query_len),
        }

    def dense(self, group: Group) -> Dense:
        """Causal attention for this sequence."""
        return Dense(length=group.length, query_len=group.query_len)

    def changed(self) -> dict[str, object]:
        """The options that are not what the variant takes by itself, the window aside."""
        declared = {item.name: self.defaults.get(item.name, item.default) for item in options_of(type(self))}
        found = {name: getattr(self, name) for name in declared}
        return {name: value for name, value in found.items() if name != "window" and value != declared[name]}

    def options(self) -> dict:
        """All options by name, JSON-serialisable."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def default_sinks(window: int | float) -> int:
    """Sinks of variants that have some by themselves: 4, fewer in windows below 32."""
    small = isinstance(window, int) and not isinstance(window, bool)
    return min(SINKS, max(0, int(window) // 8)) if small else SINKS


def check_charged(budget: str, decode: str) -> None:
    """Raise ValueError where options leave no whole prompt's window to charge a router to."""
    if budget == "nominal" or decode == "sparse":
        raise ValueError(
            "router_cost='charged' takes the router's cost over a whole prompt from the window: use budget='pairs' and "
            "decode='full' with it"
        )


def _tokens(value: int | float, length: int, least: int) -> int:
    return max(least, round(value * length)) if isinstance(value, float) else value
