"""Laws of the drawing: readable in both themes, one look per label, names from outside stay text."""

import re
from importlib import resources

import numpy as np
import pytest

from sa_eval.page import drawing, plots, svg
from sa_eval.settings import roles


def test_names_from_outside_survive_the_drawing():
    """A dollar sign is no formula, a control character no end of the file, another script no warning."""
    label = "cost $x$ <b> \x00 \u4e2d\u6587"
    panel = plots.Panel(label, "ms", (plots.Point(label, label, 2.0, 0.5, 0.4, 0.6),), None, (1.0, 4.0), False)
    slots = drawing.looks([label])
    figure = drawing.sheet([panel], lambda axes, item: drawing.draw_panel(axes, item, slots), 1, label)
    picture = svg.inline(figure, "name", panel.text, plots.tips(panel))
    assert "cost $x$ &lt;b&gt; \\u0000 \u4e2d\u6587" in picture and "\x00" not in picture
    assert svg.save(figure, "png").startswith(b"\x89PNG")


def test_arms_at_one_budget_stand_in_rows_with_their_intervals_and_full_as_a_level():
    points = tuple(plots.Point(label, label, None, y, y - 0.1, y + 0.2) for label, y in (("sa", 0.4), ("swa", 0.6)))
    dots = plots.Dots("overall", "keys per query", points, plots.Point("full", "full", None, 0.9, 0.8, 0.95))
    slots = drawing.looks(["sa", "swa"])
    axes = drawing.sheet([dots], lambda axes, item: drawing.draw_dots(axes, item, slots), 1).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sa", "swa"]
    lines = {line.get_gid(): line.get_xdata() for line in axes.lines}
    assert (list(lines["tip-0"]), list(lines["tip-1"]), list(lines["tip-full"])) == ([0.4], [0.6], [0.9, 0.9])
    whiskers = [tuple(line.get_xdata()) for line in axes.lines if line.get_gid() is None]
    assert whiskers == [pytest.approx((0.3, 0.6)), pytest.approx((0.5, 0.8))]
    assert plots.tips(dots)["tip-0"] == "sa 40.0 % (30.0 to 60.0)" and "at" not in plots.tips(dots)["tip-1"]
    taller = plots.Dots("overall", "keys per query", points * 10, None)
    assert taller.height > 3 * dots.height


def test_labels_keep_their_look_and_never_share_one():
    slots = drawing.looks(["sa", *[f"mine-{number}" for number in range(40)]])
    looks = {label: drawing.look(label, slots) for label in [*roles.in_order(), *slots]}
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == len(looks)
    assert drawing.look("sa", drawing.looks(["other", "sa"])) == looks["sa"]


def theme(css, dark):
    """The page's variables in a theme."""
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.S)
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0] + (blocks[1] if dark else "")))


def luminance(colour):
    parts = [value / 255 for value in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def rgb(colour):
    return np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])


@pytest.mark.parametrize("dark", [False, True])
def test_numbers_on_heat_are_readable_and_lines_are_seen(dark):
    css = resources.files("sa_eval.page").joinpath("report.css").read_text(encoding="utf-8")
    colours = {name: rgb(value) for name, value in theme(css, dark).items()}
    for share in np.linspace(0, 1, 11):
        opacity = drawing.heat_opacity(share)
        ground = opacity * colours["heat"] + (1 - opacity) * colours["card"]
        assert contrast(colours["ink"], ground) >= 4.5
    assert all(contrast(colours[f"c{slot}"], colours["card"]) >= 3 for slot in range(len(drawing.COLOURS)))


def test_the_light_theme_is_what_the_figures_are_drawn_in():
    css = resources.files("sa_eval.page").joinpath("report.css").read_text(encoding="utf-8")
    light, dark = theme(css, False), theme(css, True)
    assert {light[name]: name for name in svg.VARIABLES.values()} == svg.VARIABLES
    assert all(light[name] != dark[name] for name in svg.VARIABLES.values())
    assert f"calc(4% + {100 * (drawing.HEAT_MOST - drawing.HEAT_LEAST):.0f}% * var(--share))" in css
