"""Owns the files made from the results: the CSV and the pictures (PNG and SVG). No torch.

A colour per variant, a line style per budget; the full model, dashed black, is what every arm is held against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sa_eval.fidelity import summary
from sa_eval.records.directory import RunDirectory

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f4f24", "#6a4c93")  # Okabe-Ito, and two
STYLES = ("-", (0, (5, 1.5)), "-.", ":", (0, (1, 1)))
MARKERS = "osD^vP*X"
FULL = {"color": "black", "linestyle": "--", "linewidth": 1.2, "marker": ".", "markersize": 4, "zorder": 1}
SMALLEST_KL = 1e-4  # the axis is linear below, so that the full model's 0 is on it
Series = Callable[[dict[str, Any]], tuple[Sequence[float], Sequence[float]]]


def write(directory: RunDirectory, results: dict[str, Any]) -> None:
    """fidelity.csv, kl_by_position, kept_mass_by_distance and layers."""
    from matplotlib import rc_context

    directory.write_text("fidelity.csv", summary.to_csv(results))
    for name, draw in DRAWINGS.items():
        figure = draw(results)
        figure.savefig(directory.path / f"{name}.png", dpi=130)
        with rc_context({"svg.hashsalt": name}):  # the same numbers give the same file
            figure.savefig(directory.path / f"{name}.svg", metadata={"Date": None})


def kl_by_position(results: dict[str, Any]) -> Any:
    """KL by tokens read and, below, by how far back the token could be copied from."""
    figure, axes = _grid(results, 2)
    for column, length in enumerate(_lengths(results)):
        upper, lower = axes[0][column], axes[1][column]
        _lines(upper, results, length, lambda cell: _points(cell["by_position"], "high", "kl"))
        _lines(lower, results, length, lambda cell: _points(_placed(cell["by_copy_distance"]), "x", "kl"))
        upper.set(title=f"{length:,} tokens", xlabel="tokens read before", xscale="log")
        lower.set(xlabel="distance to the token that could be copied")
        rows = _placed(_cells(results, length)[0]["by_copy_distance"])
        _ticks(upper, [row["high"] for row in _cells(results, length)[0]["by_position"]])
        lower.set_xticks([row["x"] for row in rows], [row["bucket"] for row in rows], rotation=60, fontsize=7)
        for each in (upper, lower):
            each.set_yscale("symlog", linthresh=SMALLEST_KL)
    axes[0][0].set_ylabel("KL(full || arm), nats, every prediction", fontsize=8)
    axes[1][0].set_ylabel("KL(full || arm), nats, scored predictions", fontsize=8)
    return _finished(figure, results, "How far the next-token distribution is from the full model's", -SMALLEST_KL / 4)


def kept_mass_by_distance(results: dict[str, Any]) -> Any:
    """Share of full attention's mass that each arm keeps, by distance; grey: where the mass is."""
    figure, axes = _grid(results, 1)
    for column, length in enumerate(_lengths(results)):
        panel, cells = axes[0][column], _cells(results, length)
        rows = _placed(cells[0]["mass_by_distance"])
        panel.bar(
            [row["x"] for row in rows],
            [100 * row["share_of_mass"] for row in rows],
            color="0.85",
            label="full attention's mass" if column == 0 else None,
            zorder=0,
        )
        _lines(
            panel, results, length, lambda cell: _points(_placed(cell["mass_by_distance"]), "x", "kept_mass", scale=100)
        )
        panel.set(title=f"{length:,} tokens", xlabel="tokens between query and key")
        panel.set_xticks([row["x"] for row in rows], [row["bucket"] for row in rows], rotation=60, fontsize=7)
    axes[0][0].set_ylabel("% kept (lines), % of all mass (bars)")
    return _finished(figure, results, "Full attention's mass on the keys that an arm shows")


def by_layer(results: dict[str, Any]) -> Any:
    """Kept mass and the three errors, layer by layer."""
    rows = (
        ("kept_mass", "kept mass, %"),
        ("isolated_error", "error of the attention output,\nfed by the full model, %"),
        ("attention_error", "error of the attention output,\npatched model, %"),
        ("residual_error", "error of the residual stream,\npatched model, %"),
    )
    figure, axes = _grid(results, len(rows))
    for column, length in enumerate(_lengths(results)):
        axes[0][column].set_title(f"{length:,} tokens")
        for panel, (name, label) in zip((row[column] for row in axes), rows, strict=True):
            _lines(panel, results, length, lambda cell, name=name: _points(cell["layers"], "layer", name, scale=100))
            panel.xaxis.get_major_locator().set_params(integer=True)
            if column == 0:
                panel.set_ylabel(label, fontsize=8)
        axes[-1][column].set_xlabel("layer")
    return _finished(figure, results, "Layer by layer")


DRAWINGS = {"kl_by_position": kl_by_position, "kept_mass_by_distance": kept_mass_by_distance, "layers": by_layer}


def _grid(results: dict[str, Any], rows: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window system

    columns = len(_lengths(results))
    height = 3.6 if rows == 1 else 2.4 if rows > 2 else 3.0
    figure = Figure(figsize=(max(6.4, 4.2 * columns), 1.4 + height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey="row")


def _finished(figure: Any, results: dict[str, Any], title: str, bottom: float = 0.0) -> Any:
    """Axes, legend and title. Limits come last: panels of a row share them, and setting one ends their growth."""
    for panel in figure.axes:
        panel.set_ylim(bottom=bottom)
    for panel in figure.axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    handles: dict[str, Any] = {}
    for panel in figure.axes:
        handles.update((label, handle) for handle, label in zip(*panel.get_legend_handles_labels(), strict=True))
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=min(5, len(handles)), fontsize=8, frameon=False
    )
    figure.suptitle(f"{title}: {results['model']['name']}", fontsize=10)
    return figure


def _lines(panel: Any, results: dict[str, Any], length: int, series: Series) -> None:
    for cell in _cells(results, length):
        xs, ys = series(cell)
        panel.plot(xs, ys, label=cell["arm"], **_style(results, cell["arm"]))


def _style(results: dict[str, Any], name: str) -> dict[str, Any]:
    if name == "full":
        return FULL
    arms = [arm for arm in results["arms"] if arm["name"] != "full"]
    labels = list(dict.fromkeys(arm["label"] for arm in arms))
    windows = list(dict.fromkeys(arm["window"] for arm in arms))
    arm = next(arm for arm in arms if arm["name"] == name)
    label, window = labels.index(arm["label"]), windows.index(arm["window"])
    return {
        "color": COLORS[label % len(COLORS)],
        "linestyle": STYLES[window % len(STYLES)],
        "marker": MARKERS[label % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.6,
    }


def _points(
    rows: Sequence[dict[str, Any]], x: str, y: str, scale: float = 1.0
) -> tuple[Sequence[float], Sequence[float]]:
    """What was measured; the bucket without a distance stands alone, no line leads there."""
    points: list[tuple[float, float]] = []
    for row in rows:
        if row.get("low", 0) is None:
            points.append((float("nan"), float("nan")))
        if row.get(y) is not None:
            points.append((row[x], scale * row[y]))
    return [point for point, _ in points], [value for _, value in points]


def _placed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Buckets side by side, the one without a distance set apart."""
    return [{**row, "x": place + (row["low"] is None)} for place, row in enumerate(rows)]


def _cells(results: dict[str, Any], length: int) -> list[dict[str, Any]]:
    return [cell for cell in results["cells"] if cell["length"] == length]


def _lengths(results: dict[str, Any]) -> list[int]:
    return list(dict.fromkeys(cell["length"] for cell in results["cells"]))


def _ticks(panel: Any, values: Sequence[int]) -> None:
    panel.set_xticks(values, [f"{value:,}" for value in values])
    panel.minorticks_off()
