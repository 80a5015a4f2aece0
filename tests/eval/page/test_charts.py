"""Laws of the drawing: readable in both themes, one look per label, names from outside stay text."""

import re
from importlib import resources

import numpy as np
import pytest

from sa_eval.page import charts, svg
from sa_eval.settings import roles


def test_names_from_outside_survive_the_drawing():
    """A dollar sign is no formula, a control character no end of the file, another script no warning."""
    label = "cost $x$ <b> \x00 \u4e2d\u6587"
    panel = charts.Panel(label, "ms", (charts.Point(label, label, 2.0, 0.5, 0.4, 0.6),), None, (1.0, 4.0), False)
    places = charts.slots([label])
    figure = charts.sheet([panel], lambda axes, item: charts.draw_panel(axes, item, places), 1, label)
    picture = svg.inline(figure, "name", panel.text, charts.tips(panel))
    assert "cost $x$ &lt;b&gt; \\u0000 \u4e2d\u6587" in picture and "\x00" not in picture
    assert svg.save(figure, "png").startswith(b"\x89PNG")


def test_labels_keep_their_look_and_never_share_one():
    places = charts.slots(["sa", *[f"mine-{number}" for number in range(40)]])
    looks = {label: charts.look(label, places) for label in [*roles.in_order(), *places]}
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == len(looks)
    assert charts.look("sa", charts.slots(["other", "sa"])) == looks["sa"]


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
        opacity = charts.heat_opacity(share)
        ground = opacity * colours["heat"] + (1 - opacity) * colours["card"]
        assert contrast(colours["ink"], ground) >= 4.5
    assert all(contrast(colours[f"c{slot}"], colours["card"]) >= 3 for slot in range(len(charts.COLOURS)))


def test_the_light_theme_is_what_the_figures_are_drawn_in():
    css = resources.files("sa_eval.page").joinpath("report.css").read_text(encoding="utf-8")
    light, dark = theme(css, False), theme(css, True)
    assert {light[name]: name for name in svg.VARIABLES.values()} == svg.VARIABLES
    assert all(light[name] != dark[name] for name in svg.VARIABLES.values())
    assert f"calc(4% + {100 * (charts.HEAT_MOST - charts.HEAT_LEAST):.0f}% * var(--share))" in css
