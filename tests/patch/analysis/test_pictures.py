"""Pictures show what was computed, and look as they did: `python tests/patch/analysis/test_pictures.py` stores them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sa_patch
from sa_patch.analysis import (
    KeptMass,
    NeedleSight,
    coverage,
    draw_mask,
    plot_coverage,
    plot_distances,
    plot_kept_mass,
    plot_needle,
    plot_receptive_field,
)

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import numpy as np  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import imread  # noqa: E402

STORED = Path(__file__).parent / "pictures"
DPI = 32
SAME = 0.02  # mean difference of pixels, 0 to 1: fonts may move by a pixel, lines may not


def mask_picture(axes, seed=0):
    variant = sa_patch.variant("sa", 6, seed=seed, sinks=1)
    from sa_patch.analysis import layers

    return draw_mask(next(iter(layers.patterns(variant, 40, 1, seed))).visible(), axes, "sa")


def coverage_picture(axes, seed=0):
    found = [coverage(sa_patch.variant("sa", w + seed), 80, 5, range(3)) for w in (4, 12)]
    return plot_coverage(found, axes, labels=["w = 4", "w = 12"])


def distances_picture(axes, seed=0):
    return plot_distances(coverage(sa_patch.variant("sa", 6 + 6 * seed), 80, 4, range(3)), axes)


def field_picture(axes, seed=0):
    return plot_receptive_field(sa_patch.variant("sa", 6), 80, 4, axes, seed=seed)


def mass_picture(axes, seed=0):
    mass = torch.linspace(0, 1, 12, dtype=torch.float64).view(3, 4)
    return plot_kept_mass(KeptMass(mass.flip(0) if seed else mass, 50, 50), axes)


def needle_picture(axes, seed=0):
    share = torch.eye(4, dtype=torch.float64)
    return plot_needle(NeedleSight(share.flip(0) if seed else share, (0.0, 0.5, 1.0, 1.0), (3, 6), 40), axes)


PICTURES = {
    "mask": mask_picture,
    "coverage": coverage_picture,
    "distances": distances_picture,
    "field": field_picture,
    "mass": mass_picture,
    "needle": needle_picture,
}


def drawn(name, seed=0):
    """RGB of a picture: float [height, width, 3]; the axes that were given are those that come back."""
    figure = Figure((4.0, 3.2), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    assert PICTURES[name](axes, seed) is axes
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255.0


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_looks_as_it_did(name):
    stored = imread(STORED / f"{name}.png")[..., :3]
    found = drawn(name)
    assert found.shape == stored.shape and np.abs(found - stored).mean() < SAME
    data = slice(20, -20), slice(30, -45)  # another seed moves what is inside the axes
    assert np.abs(drawn(name, seed=1) - stored)[data].mean() > np.abs(found - stored)[data].mean() + 0.005


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_makes_axes_of_its_own(name):
    from matplotlib import pyplot

    axes = PICTURES[name](None)
    assert axes.get_xlabel() and axes.get_ylabel()
    pyplot.close(axes.figure)


def test_lines_show_shares_with_intervals_over_the_theory():
    found = coverage(sa_patch.variant("sa", 6), 80, 4, range(3))
    axes = plot_coverage(found, Figure().subplots())
    (bars,) = axes.containers
    marks, _, (lines,) = bars.lines
    assert marks.get_ydata().tolist() == pytest.approx(found.covered)
    ends = [tuple(segment[:, 1]) for segment in lines.get_segments()]
    for (low, high), expected in zip(ends, found.intervals, strict=True):
        assert (low, high) == pytest.approx(expected)
    theory = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert list(theory.get_ydata()) == pytest.approx(found.expected)


def test_large_masks_are_drawn_as_shares():
    axes = draw_mask(torch.ones(1500, 1500).tril() > 0, Figure().subplots())
    shown = axes.images[0].get_array()
    assert shown.shape == (512, 512) and float(shown.mean()) == pytest.approx(0.5, abs=0.01)
    assert tuple(axes.images[0].get_extent()) == (-0.5, 1499.5, 1499.5, -0.5)


def test_a_patch_draws_its_masks(qwen3):
    patch = sa_patch.apply(qwen3, "sa", window=6)
    axes = patch.plot_mask(40, 1, Figure().subplots())
    assert np.array_equal(axes.images[0].get_array() > 0, patch.mask(40, 1).numpy())
    assert "sa, window=6" in axes.get_title() and "layer 1" in axes.get_title()
    several = patch.plot_mask(40, layers=[0, 2], ax=Figure().subplots())
    total = patch.mask(40, 0).float() + patch.mask(40, 2).float()
    assert np.array_equal(several.images[0].get_array(), total.numpy())
    with pytest.raises(ValueError, match="name at least one layer"):
        patch.plot_mask(40, layers=[])
    with pytest.raises(ValueError, match="out of range"):
        patch.plot_mask(40, layers=[0, 7])


@pytest.mark.parametrize("length", [32_769, 131_072])
def test_masks_that_would_not_fit_are_refused_with_a_sentence(qwen3, length):
    patch = sa_patch.apply(qwen3, "sa", window=6)
    for show in (patch.mask, patch.plot_mask):
        with pytest.raises(ValueError, match=r"a mask of .* tokens would take .* GiB: up to 32,768 tokens"):
            show(length)


def test_a_mask_made_in_parts_is_the_whole_one(qwen3, monkeypatch):
    patch = sa_patch.apply(qwen3, "sa-dyadic", window=6)
    whole = patch.mask(100)
    monkeypatch.setattr("sa_patch.patch.MASK_ROWS", 7)
    assert torch.equal(patch.mask(100), whole)


BARE = """\
import sys
sys.modules["matplotlib"] = None  # importing it says that there is no such module
import sa_patch
assert "sa_patch.analysis" not in sys.modules
found = sa_patch.analysis.coverage(sa_patch.variant("sa", 4), 30, 2, [0])
assert "transformers" not in sys.modules, "analysis needs torch only until a prompt is read"
try:
    sa_patch.analysis.plot_coverage(found)
except ModuleNotFoundError as error:
    print(error)
"""


def test_without_matplotlib_everything_but_pictures_works():
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("pip install 'sa-patch[plots]'")


if __name__ == "__main__":
    from matplotlib.image import imsave

    STORED.mkdir(exist_ok=True)
    for picture in PICTURES:
        imsave(STORED / f"{picture}.png", drawn(picture))
