"""Numbers that others published, to stand beside ours: what a settings file may say of them.

published:
  source: who published it, where, under which conditions
  models:
    Qwen/Qwen3-8B:
      64: {swa: 50.7, sa: {average: 66.4, mmlu: 63.0}}    # window, arm, percent; a number is the average
      full: {full: 71.5}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from sa_eval.messages import shown
from sa_eval.settings.values import SettingsError, nearest, number

AVERAGE = "average"
LONGEST = 200
Windows = dict[str, dict[str, dict[str, float]]]  # window, arm, and task or average: percent


class Published(TypedDict):
    """The checked setting: `models` by name."""

    source: str
    models: dict[str, Windows]


class PublishedRow(TypedDict):
    """One number: `window` None for full, `name` a task or "average", `value` a share between 0 and 1."""

    label: str
    window: int | float | None
    name: str
    value: float
    source: str


def checked(value: Any, modes: Sequence[str]) -> Published:
    """The same mapping with text keys and the numbers of every arm, which has the name of a mode; or an error."""
    found = _mapping("published", value)
    for key in found:
        if key not in ("source", "models"):
            raise SettingsError(f"published: unknown key {shown(key)}: {nearest(str(key)[:100], ('source', 'models'))}")
    source = found.get("source")
    if not isinstance(source, str) or not source.strip():
        raise SettingsError("published needs a source: text that says where its numbers come from")
    models = _mapping("published: models", found.get("models"))
    return {
        "source": source,
        "models": {_key("model", name): _model(name, item, modes) for name, item in models.items()},
    }


def _model(name: Any, value: Any, modes: Sequence[str]) -> Windows:
    windows: Windows = {}
    for window, arms in _mapping(f"published: {shown(name)}", value).items():
        key = _window(window)
        if key in windows:
            raise SettingsError(f"published holds window {key} twice")
        windows[key] = {
            _label(arm, modes): _numbers(arm, item) for arm, item in _mapping(f"window {key}", arms).items()
        }
    return windows


def _window(value: Any) -> str:
    if value == "full":
        return "full"
    window = number("published: window", value, fraction=True)
    if window <= 0:
        raise SettingsError(f"published: window must be at least 1, found {shown(value)}")
    return _key("window", str(window))


def _label(arm: Any, modes: Sequence[str]) -> str:
    if not isinstance(arm, str) or arm not in modes:
        raise SettingsError(f"published: arm {shown(arm)} is not known: {nearest(str(arm)[:100], modes)}")
    return arm


def _numbers(arm: str, value: Any) -> dict[str, float]:
    numbers = {AVERAGE: value} if isinstance(value, (int, float)) else _mapping(f"published: {arm}", value)
    return {_key("task", task): _percent(arm, item) for task, item in numbers.items()}


def _percent(arm: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
        raise SettingsError(f"published: {arm} must be a percentage between 0 and 100, found {shown(value)}")
    return float(value)


def _mapping(what: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping) or not value:
        raise SettingsError(f"{what} must be a mapping with entries, found {shown(value)}")
    return value


def _key(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > LONGEST:
        raise SettingsError(f"published: {shown(value)} is no name of a {what}")
    return value


def published_for(settings: Mapping[str, Any], model_name: str) -> list[PublishedRow]:
    """What was published about the model that ran.

    Args:
        settings: as in a run's manifest (`Settings.to_dict()`).
        model_name: a hub id or a folder; its last part counts, so a local copy finds its model.

    Returns:
        Empty when nothing is known of this model.
    """
    given = settings.get("published")
    if not given:
        return []
    wanted = _last_part(model_name)
    return [
        {"label": label, "window": _as_number(window), "name": name, "value": value / 100, "source": given["source"]}
        for model, windows in given["models"].items()
        if _last_part(model) == wanted
        for window, arms in windows.items()
        for label, numbers in arms.items()
        for name, value in numbers.items()
    ]


def _last_part(model: str) -> str:
    return model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].casefold()


def _as_number(window: str) -> int | float | None:
    if window == "full":
        return None
    return float(window) if "." in window or "e" in window else int(window)
