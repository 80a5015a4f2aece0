"""Pictures of masks, coverage, receptive fields and prompts. Matplotlib is imported when one is drawn, not before.

Every function draws into `ax` or into axes of its own, and returns the Axes. Colours are those of Okabe & Ito (2008),
which people with colour blindness tell apart, with a mark of its own for each line; shades are matplotlib's `cividis`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sa_patch.analysis import layers
from sa_patch.analysis.coverage import Coverage
from sa_patch.analysis.reach import step
from sa_patch.plan import Plan
from sa_patch.variants.base import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sa_patch.analysis.prompt import KeptMass, NeedleSight

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
PIXELS = 512  # cells along a side of a drawn mask or field at most; larger ones are averaged
SHADES = "cividis"


def new_axes(width: float = 4.8, height: float = 3.6) -> Axes:
    """Axes of a new figure.

    Raises:
        ModuleNotFoundError: where matplotlib is not installed; the message names the command.
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ModuleNotFoundError(
            "pictures are drawn with matplotlib, which is not installed: pip install 'sa-patch[plots]'",
            name="matplotlib",
        ) from error
    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def draw_mask(mask: Tensor, ax: Axes | None = None, title: str = "") -> Axes:
    """Who sees whom: queries downwards, keys to the right; dark is visible. Above 512 tokens, shares of small squares.

    Args:
        mask: bool or share [queries, keys].
    """
    ax = ax or new_axes(3.6, 3.6)
    queries, keys = mask.shape
    extent = (-0.5, keys - 0.5, queries - 0.5, -0.5)
    ax.imshow(_pooled(mask.float()).numpy(), cmap="gray_r", vmin=0, extent=extent, interpolation="nearest")
    ax.set(xlabel="key", ylabel="query", title=title)
    return ax


def plot_coverage(
    results: Coverage | Sequence[Coverage], ax: Axes | None = None, *, labels: Sequence[str] | None = None
) -> Axes:
    """Share of connected pairs over layers: marks with 95 % intervals where measured, dashed lines where expected."""
    shown = [results] if isinstance(results, Coverage) else list(results)
    names = [one.name for one in shown] if labels is None else list(labels)
    if not shown or len(names) != len(shown):
        raise ValueError(f"{len(shown)} results and {len(names)} labels: give at least one result, and a label each")
    ax = ax or new_axes()
    from matplotlib.ticker import MaxNLocator  # after new_axes, which says what is missing

    for number, (one, name) in enumerate(zip(shown, names, strict=True)):
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
        layer = range(1, one.num_layers + 1)
        errors = [
            [max(0.0, share - low) if low == low else 0.0 for share, (low, _) in _points(one)],
            [max(0.0, high - share) if high == high else 0.0 for share, (_, high) in _points(one)],
        ]
        # The expected curve lies behind; a pattern without randomness has no other.
        if one.expected is not None:
            ax.plot(layer, one.expected, color=colour, linewidth=1.2, linestyle="--")
        linked = "none" if one.expected is not None else "-"
        ax.errorbar(
            layer,
            one.covered,
            yerr=errors,
            color=colour,
            marker=mark,
            markersize=4,
            linewidth=1,
            capsize=2,
            linestyle=linked,
            label=name,
        )
    ax.set(xlabel="layers", ylabel="pairs connected", ylim=(-0.02, 1.02), title=_common_title(shown))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.legend(frameon=False, fontsize=8)
    return ax


def plot_distances(result: Coverage, ax: Axes | None = None, *, depths: Sequence[int] = (1, 2, 3, 4, 8)) -> Axes:
    """Share of connected pairs over the distance of query and token, after some numbers of layers."""
    if not result.distances:
        raise ValueError("distances exist for causal coverage only: coverage(..., causal=True)")
    ax = ax or new_axes()
    middles = [(low * high) ** 0.5 for low, high in result.distances[1:]]
    for number, depth in enumerate(depth for depth in depths if depth <= result.num_layers):
        shares = result.by_distance[depth - 1][1:]
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
        ax.plot(
            middles,
            shares,
            color=colour,
            marker=mark,
            markersize=4,
            linewidth=1,
            label=f"{depth} layer{'s' if depth > 1 else ''}",
        )
    ax.set(xscale="log", xlabel="tokens between", ylabel="pairs connected", ylim=(-0.02, 1.02), title=result.name)
    ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.legend(frameon=False, fontsize=8)
    return ax


def receptive_field(variant: Variant | Plan, length: int, num_layers: int, *, query: int = -1, seed: int = 0) -> Tensor:
    """Which tokens can have reached a query through the last 1, 2, ... layers of a stack: bool [num_layers, length].

    Raises:
        ValueError: for arguments out of range, or a variant that chooses keys by content.
    """
    layers.check(variant, length, num_layers, (seed,))
    if not -length <= query < length:
        raise ValueError(f"query={query} is no position of {length} tokens")
    held = torch.zeros(length, 1, dtype=torch.bool)
    held[query] = True
    found = []
    for pattern in reversed(list(layers.patterns(variant, length, num_layers, seed))):
        held = step(pattern, held, "backward")
        found.append(held[:, 0])
    return torch.stack(found)


def plot_receptive_field(
    variant: Variant | Plan,
    length: int,
    num_layers: int,
    ax: Axes | None = None,
    *,
    query: int = -1,
    seed: int = 0,
) -> Axes:
    """The receptive field of a query, layer by layer: a row for the last 1, 2, ... layers, light where it reaches."""
    field = receptive_field(variant, length, num_layers, query=query, seed=seed).float()
    ax = ax or new_axes(5.6, 0.5 + 0.3 * num_layers + 0.6)
    extent = (-0.5, length - 0.5, num_layers + 0.5, 0.5)
    image = ax.imshow(
        _pooled(field, rows=False).numpy(),
        cmap=SHADES,
        vmin=0,
        vmax=1,
        aspect="auto",
        extent=extent,
        interpolation="nearest",
    )
    own = query % length
    shares = field[:, : own + 1].mean(1)
    ax.set_yticks(range(1, num_layers + 1), [f"{depth}: {share:.1%}" for depth, share in enumerate(shares, 1)])
    ax.set(xlabel="token", ylabel="last layers: reached")
    ax.set_title(f"what query {own:,} can know", fontsize=10)
    _bar(image, ax, "share of tokens")
    return ax


def plot_kept_mass(result: KeptMass, ax: Axes | None = None) -> Axes:
    """The share of full attention's probability that visible keys hold, per layer and head."""
    mean = float(result.mass.mean())
    return _by_head(result.mass, ax, f"kept attention mass, mean {mean:.1%}", "share kept")


def plot_needle(result: NeedleSight, ax: Axes | None = None) -> Axes:
    """Which layers and heads show the needle to the query; the axis tells how much of it can be known by then."""
    first, last = result.needle
    title = f"tokens {first:,}-{last:,} as seen from {result.query:,}"
    ax = _by_head(result.share, ax, title, "share visible")
    ax.set_yticks(
        range(len(result.connected)), [f"{layer} ({share:.0%})" for layer, share in enumerate(result.connected)]
    )
    ax.set_ylabel("layer (connected by then)")
    return ax


def _by_head(values: Tensor, ax: Axes | None, title: str, meaning: str) -> Axes:
    num_layers, heads = values.shape
    ax = ax or new_axes(1.8 + 0.28 * heads, 1.2 + 0.24 * num_layers)
    image = ax.imshow(values.numpy(), cmap=SHADES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.set(xlabel="head", ylabel="layer")
    ax.set_xticks(range(0, heads, max(1, heads // 8)))
    ax.set_yticks(range(0, num_layers, max(1, num_layers // 16)))
    ax.set_title(title, fontsize=10)
    _bar(image, ax, meaning)
    return ax


def _bar(image: Any, ax: Axes, label: str) -> None:
    figure = ax.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=ax, label=label)


def _pooled(values: Tensor, *, rows: bool = True) -> Tensor:
    """Averages over squares, so that no side has more than PIXELS cells; rows=False keeps the rows."""
    height, width = values.shape
    size = (min(height, PIXELS) if rows else height), min(width, PIXELS)
    if size == (height, width):
        return values
    return torch.nn.functional.adaptive_avg_pool2d(values[None, None], size)[0, 0]


def _points(result: Coverage) -> list[tuple[float, tuple[float, float]]]:
    return list(zip(result.covered, result.intervals, strict=True))


def _common_title(results: Sequence[Coverage]) -> str:
    lengths = {one.length for one in results}
    directions = {one.causal for one in results}
    length = f"{lengths.pop():,} tokens" if len(lengths) == 1 else ""
    direction = ("causal" if directions.pop() else "both directions") if len(directions) == 1 else ""
    return ", ".join(filter(None, [length, direction]))
