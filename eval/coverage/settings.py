"""What `sa-eval coverage` can be asked: the settings it shares with a run, and its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sa_eval.settings.config import Settings, option_settings, settings_from
from sa_eval.settings.setting import setting, settings_of
from sa_eval.settings.values import SettingsError

# Settings of a run that mean the same here, besides the variants' options; what is generated takes no part.
SHARED = ("modes", "plans", "lengths", "seeds", "out")
WITHOUT = ("decode",)
DEFAULTS: dict[str, object] = {
    "modes": ("swa", "sa", "sa+swa"),
    "window": (64, 128, 256),
    "lengths": (1024, 8192),
    "seeds": (0, 1, 2, 3, 4, 5, 6, 7),
}
LONGEST = 1 << 20


@dataclass(frozen=True)
class CoverageSettings:
    """What is simulated: `of` holds what is shared with a run."""

    of: Settings
    layers: int = setting(12, "layers of the stack (a plan brings its own number)", minimum=1, maximum=1000)
    directions: tuple[Literal["causal", "both"], ...] = setting(
        ("causal", "both"),
        "causal: what a decoder does; both: every layer as an undirected graph, the case of the paper's theory",
    )
    sources: int | None = setting(
        None, "tokens followed per seed (default: every one up to 2,048 tokens, else 64)", minimum=1, maximum=LONGEST
    )
    last: int = setting(64, "tokens before a query that local coherence is about", minimum=1, maximum=LONGEST)

    def to_dict(self) -> dict[str, object]:
        own = {name: value for name, value in asdict(self).items() if name != "of"}
        own["directions"] = list(self.directions)
        return {**{name: value for name, value in self.of.to_dict().items() if name in shared()}, **own}


def shared() -> list[str]:
    """The settings of a run that mean the same here."""
    return [*SHARED, *(item.name for item in option_settings() if item.name not in WITHOUT)]


def coverage_settings(given: Mapping[str, Any]) -> CoverageSettings:
    """Checked settings from flags; what is not given keeps its default.

    Raises:
        SettingsError: for a value that cannot be used, or two that contradict each other.
    """
    known = settings_of(CoverageSettings)
    defaults = {**DEFAULTS, "modes": ("full",)} if given.get("plans") and "modes" not in given else DEFAULTS
    of = settings_from({**defaults, **{name: value for name, value in given.items() if name not in known}})
    asked = CoverageSettings(of, **{name: known[name].checked(value) for name, value in given.items() if name in known})
    for length in of.lengths:
        if length > LONGEST:
            raise SettingsError(f"lengths holds {length:,}, at most {LONGEST:,} tokens are simulated")
    if asked.last >= min(of.lengths):
        raise SettingsError(
            f"last={asked.last} asks for more tokens before a query than lengths has ({min(of.lengths)}): lower it"
        )
    return asked
