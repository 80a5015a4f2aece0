"""What a setting takes: read from the declaration of a variant's option, or from a field of a settings class.

Flags, settings files and the documentation of both come from here, so they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sa_eval.messages import shown
from sa_eval.settings import layer_sets
from sa_eval.settings.declared import Option
from sa_eval.settings.values import LARGEST, SettingsError, nearest, number, refuse_doubles, switch, text

KINDS: dict[Any, str] = {bool: "switch", int: "integer", str: "text"}
LAYERS = (
    ": numbers and slices (1::2: every second one from the second) joined by commas; / sets several sets apart, as in "
    "none/0,-1/1::2; in a file a list, or a list of lists"
)


@dataclass(frozen=True)
class Setting:
    """One setting: its name, default and help, and the rule for its values.

    Attributes:
        kind: as of an `Option`; "files" for paths; "own" where `read` takes the whole value.
        words: what a choice can be, or the words beside a number.
        many: a list of values, none of them twice.
        optional: may be left empty; in a list, `none` is a value.
        read: the check of the whole value, for what is no number, word or text.
        in_files_only: it has no flag.
        also: other names of its flag.
    """

    name: str
    kind: str
    default: Any
    help: str
    words: tuple[str, ...] = ()
    many: bool = False
    optional: bool = False
    minimum: int | None = 0
    maximum: int = LARGEST
    read: Callable[[str, Any], Any] | None = None
    in_files_only: bool = False
    also: tuple[str, ...] = ()

    @classmethod
    def of_option(cls, option: Option, default: Any) -> Setting:
        """An option of variants: a list of values where a run can compare several."""
        many, layers = option.swept, option.kind == "layers"
        owners = "" if option.shared else f" ({' and '.join(option.owners)} only)"
        return cls(
            option.name,
            option.kind,
            default,
            option.help + (LAYERS if layers else "") + owners,
            option.words,
            many,
            option.optional,
            option.minimum,
            read=layer_sets.sets_from if layers else None,
        )

    def checked(self, value: Any) -> Any:
        """What the value means.

        Raises:
            SettingsError: for a value of another kind, out of range, unknown, or twice in a list.
        """
        if value is None and not self.optional:
            raise SettingsError(f"{self.name} is empty: give a value or leave the key out")
        if self.read is not None:
            return None if value is None else self.read(self.name, value)
        if self.many:
            return self._list(value)
        if isinstance(value, (list, tuple)):
            raise SettingsError(f"{self.name} takes one value, found a list: {shown(list(value))}")
        return self._item(value)

    def _list(self, value: Any) -> tuple[Any, ...]:
        """The items of a list, of text with commas, or the single value itself."""
        entries = list(value) if isinstance(value, (list, tuple)) else [value]
        items = [part for entry in entries for part in (entry.split(",") if isinstance(entry, str) else [entry])]
        found = tuple(self._item(item.strip() if isinstance(item, str) else item) for item in items if item != "")
        if not found:
            raise SettingsError(f"{self.name} is an empty list: give at least one value")
        refuse_doubles(self.name, found)
        return found

    def _item(self, value: Any) -> Any:
        if self.optional and (value is None or (self.many and value == "none")):
            return None
        if self.kind == "switch":
            return switch(self.name, value, as_text=self.many)
        if self.kind in ("choice", "text"):
            value = text(self.name, value)
            if self.words and value not in self.words:
                raise SettingsError(f"{self.name} {shown(value)} is not known: {nearest(value, self.words)}")
            return value
        if isinstance(value, str) and value in self.words:
            return value
        fraction = self.kind == "amount"
        found = number(self.name, value, fraction=fraction)
        if self.minimum is not None and found < self.minimum and not (fraction and 0 < found < 1):
            raise SettingsError(f"{self.name} must be at least {self.minimum}, found {shown(found)}")
        if abs(found) > self.maximum:
            raise SettingsError(f"{self.name} must be at most {self.maximum:,}, found {shown(found)}")
        return found


def setting(default: Any, help: str, **rule: Any) -> Any:
    """A field of a settings class; its annotation says what it takes, `rule` is the rest of `Setting`."""
    return field(default=default, metadata={"help": help, **rule})


@cache
def settings_of(kind: type) -> dict[str, Setting]:
    """The settings that a class declares, by name."""
    hints = get_type_hints(kind)
    return {item.name: _read(item, hints[item.name]) for item in fields(kind) if "help" in item.metadata}


def _read(item: Any, annotation: Any) -> Setting:
    rule = dict(item.metadata)
    if "read" in rule:
        return Setting(item.name, rule.pop("kind", "own"), item.default, **rule)
    many = get_origin(annotation) is tuple
    item_type = get_args(annotation)[0] if many else annotation
    parts = get_args(item_type) if get_origin(item_type) in (Union, UnionType) else (item_type,)
    words = tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))
    kind = next((KINDS[part] for part in parts if part in KINDS), "choice")
    return Setting(item.name, kind, item.default, words=words, many=many, optional=NoneType in parts, **rule)
