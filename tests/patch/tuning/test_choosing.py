"""From figures to rules: nothing is chosen by noise, and nothing is said of what was not read."""

import random
from itertools import product

import pytest

from sa_patch.kernels.rules import kernel_at
from sa_patch.tuning.choosing import FULL, Cell, Reading, chosen, crossovers, steps


def reading(ms, scatter=0.05):
    return Reading(ms, ms * (1 - scatter), ms * (1 + scatter))


def cell(length=1024, window=64, arm="sa", layout="permuted", pieces=False, refused=(), scatter=0.05, **ms):
    readings = {name: reading(value, scatter) for name, value in {FULL: 100.0, **ms}.items()}
    return Cell(arm, (layout,), layout, pieces, length, window, readings, frozenset(refused))


def choice(*cells, order=("torch", "fast", "other"), default="torch"):
    return chosen(cells, order, lambda layout, length: default)


def test_what_is_faster_beyond_the_scatter_is_chosen():
    assert choice(cell(torch=10, fast=8)) == {("permuted", 1024): "fast"}
    assert choice(cell(torch=10, fast=8, scatter=0.2)) == {("permuted", 1024): "torch"}


def test_between_two_that_cannot_be_told_apart_the_first_stays():
    found = choice(cell(torch=10, fast=5, other=4.9))
    assert found == {("permuted", 1024): "fast"}
    assert choice(cell(torch=10, fast=5, other=3)) == {("permuted", 1024): "other"}


def test_slower_anywhere_is_not_chosen():
    assert choice(cell(torch=10, fast=5), cell(window=256, torch=10, fast=12)) == {("permuted", 1024): "torch"}
    assert choice(cell(torch=10, fast=5), cell(window=256, torch=10, fast=10)) == {("permuted", 1024): "fast"}


def test_what_was_not_read_beside_the_default_everywhere_is_not_chosen():
    assert choice(cell(torch=10, fast=5), cell(window=256, torch=10)) == {("permuted", 1024): "torch"}


def test_an_arm_that_a_kernel_refuses_runs_on_the_fallback():
    routed = cell(arm="routed", torch=10, refused=["fast"])
    assert choice(cell(torch=10, fast=5), routed) == {("permuted", 1024): "fast"}
    beside = cell(arm="routed", torch=10, other=2, refused=["fast"])
    assert choice(cell(torch=10, fast=5, other=9), beside, default="other") == {("permuted", 1024): "other"}


def test_pieces_say_nothing_about_a_kernels_sizes():
    assert choice(cell(torch=10, fast=5, pieces=True)) == {}


def test_noise_alone_chooses_nothing():
    """Two kernels with the same times, read anew a thousand times: ranges of 5 and 5 lie apart once in 252 times in
    one direction, and a rule asks for that at one of the windows."""
    draw, taken = random.Random(0), 0
    for _ in range(1000):
        cells = []
        for window in (64, 256):
            times = {name: [draw.gauss(10, 2) for _ in range(5)] for name in ("torch", "fast")}
            readings = {name: Reading(sorted(found)[2], min(found), max(found)) for name, found in times.items()}
            cells.append(Cell("sa", ("permuted",), "permuted", False, 1024, window, {FULL: reading(9), **readings}))
        taken += choice(*cells) != {("permuted", 1024): "torch"}
    assert taken < 25


DEFAULT = ((256, "sdpa"), (None, "torch"))


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({1024: "torch"}, DEFAULT),
        ({256: "sdpa", 1024: "torch"}, DEFAULT),
        ({128: "sdpa", 512: "torch"}, DEFAULT),
        ({1024: "fast"}, ((256, "sdpa"), (1023, "torch"), (None, "fast"))),
        ({1024: "fast", 4096: "torch"}, ((256, "sdpa"), (1023, "torch"), (4095, "fast"), (None, "torch"))),
        ({200: "fast", 1024: "fast"}, ((199, "sdpa"), (None, "fast"))),
        ({1: "fast"}, ((None, "fast"),)),
        ({512: "sdpa", 1024: "torch"}, ((256, "sdpa"), (511, "torch"), (1023, "sdpa"), (None, "torch"))),
    ],
)
def test_a_choice_holds_up_to_the_next_length_and_the_default_stays_elsewhere(choices, expected):
    assert steps(choices, lambda length: kernel_at(DEFAULT, length, length), [256]) == expected


def at(length, window, sparse, **more):
    return cell(length, window, torch=sparse, **more)


def crossed(*cells):
    return crossovers(cells, {("permuted", cell.length): "torch" for cell in cells})


def test_beyond_a_crossover_everything_read_was_faster():
    found = crossed(at(512, 64, 200), at(1024, 64, 120), at(2048, 64, 50), at(4096, 64, 20))
    assert found == {"permuted": (32, 2047)}
    late = crossed(at(512, 64, 50), at(1024, 64, 120), at(2048, 64, 50))  # faster, then slower again
    assert late == {"permuted": (32, 2047)}


def test_below_the_shortest_length_nothing_is_known_to_be_faster():
    assert crossed(at(512, 64, 10), at(1024, 64, 10)) == {"permuted": (8, 511)}


def test_where_the_longest_is_not_faster_nothing_is_said():
    assert crossed(at(512, 64, 200), at(1024, 64, 120)) == {}
    assert crossed(at(1024, 64, 10), at(1024, 256, 120)) == {}
    assert crossed(at(1024, 64, 99)) == {}  # not beyond the scatter


def test_a_crossover_holds_for_every_arm_of_its_layout_and_grows_with_the_window():
    found = crossed(*(at(length, 64, 10, arm=arm) for length, arm in product((512, 1024), ("sa", "sa-dyadic"))))
    assert found == {"permuted": (8, 511)}
    found = crossed(at(512, 64, 10), at(1024, 64, 10), at(512, 64, 150, arm="sa-dyadic"), at(1024, 64, 10))
    assert found == {"permuted": (16, 1023)}
    wide = crossed(at(512, 64, 10), at(2048, 64, 10), at(512, 256, 120), at(2048, 256, 10))
    assert wide == {"permuted": (8, 511)}  # 8 x 256 = 2,048


def test_a_crossover_is_that_of_the_kernel_that_runs():
    cells = [cell(1024, 64, torch=150, fast=10), cell(1024, 64, arm="routed", torch=50, refused=["fast"])]
    assert crossovers(cells, {("permuted", 1024): "fast"}) == {"permuted": (16, 1023)}
    assert crossovers(cells, {("permuted", 1024): "torch"}) == {}
