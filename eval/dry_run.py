"""--dry-run: what would run, at which budgets, what is left out, and about how long it takes. Loads no weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sa_eval import estimate
from sa_eval.budgets import measured_budget
from sa_eval.documents import ruler, selection
from sa_eval.loading import models, sources
from sa_eval.settings.arm import Arm, check_kernels
from sa_eval.settings.arms import Sweep, arms_from, sweep_of
from sa_eval.settings.config import Settings, SettingsError
from sa_eval.settings.published import published_for
from sa_eval.tasks import TASKS

MOST_LEFT_OUT = 40


def render(settings: Settings) -> str:
    """What a run of these settings would be, as text.

    Raises:
        SettingsError: when no arm but full could run on this model.
    """
    source = sources.find(settings.model)
    selection.check_tasks(settings)
    arms = arms_from(settings)
    for arm in arms:
        arm.check()
    model = models.empty_model(source, settings)
    selection.check_lengths(settings, models.max_tokens(model))
    device = models.pick_device(settings)
    dtype = models.pick_dtype(settings, device)
    shape = estimate.shape_of(model, dtype)
    check_kernels(arms, model, torch.device(device), None if dtype == "auto" else getattr(torch, dtype))
    usable, rows, refused = _measured(model, arms, settings)
    documents, cost = _documents(settings)
    runs = sum(len(arm.seeds) for arm in usable)
    lines = [
        f"model    {settings.model}: {shape.parameters / 1e6:,.1f} M parameters, {shape.layers} layers, on {device}",
        "",
        *_table(rows, settings),
        *_left_out(sweep_of(settings), refused),
        "",
        *documents,
        f"{len(usable)} arms, {runs} passes (arms and seeds){_time(runs, shape, cost, settings, device)}",
        "",
        *estimate.memory(shape, settings, models.pick_batch_size(settings, device, max(settings.lengths))),
        *_published(settings),
    ]
    return "\n".join(lines)


def _measured(
    model: Any, arms: list[Arm], settings: Settings
) -> tuple[list[Arm], list[list[str]], list[tuple[Arm, str]]]:
    """The arms this model takes, their rows, and those it refuses with the reason."""
    usable, rows, refused = [], [], []
    for arm in arms:
        try:
            rows.append(_row(model, arm, settings.lengths))
            usable.append(arm)
        except (ValueError, NotImplementedError) as error:
            refused.append((arm, str(error)))
    if refused and len(usable) == 1:
        arm, reason = refused[0]
        raise SettingsError(f"arm {arm.name} cannot run on this model: {reason}")
    return usable, rows, refused


def _row(model: Any, arm: Arm, lengths: tuple[int, ...]) -> list[str]:
    patch = arm.apply(model, arm.seeds[0])
    try:
        budgets = [measured_budget(patch, [length]) for length in lengths]
    finally:
        if patch is not None:
            patch.restore()
    numbers = [text for found in budgets for text in (f"{found.keys_per_query:,.1f}", f"{found.density:.3f}")]
    return [arm.name, ",".join(map(str, arm.seeds)), *numbers]


def _table(rows: list[list[str]], settings: Settings) -> Iterator[str]:
    heads = ["arm", "seeds"]
    for length in settings.lengths:
        heads += [f"keys/q at {length}", "density"]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    for row in [heads, *rows]:
        left = [f"{text:<{width}}" for text, width in zip(row[:2], widths[:2], strict=True)]
        right = [f"{text:>{width}}" for text, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join([*left, *right])


def _left_out(sweep: Sweep, refused: list[tuple[Arm, str]]) -> Iterator[str]:
    """The grid's size, and every combination that is no arm of it."""
    left_out = [*sweep.left_out, *refused]
    yield ""
    yield f"grid     {sweep.combinations} combinations of mode, window and options; {len(left_out)} left out"
    for arm, reason in left_out[:MOST_LEFT_OUT]:
        yield f"         {arm.name}: {reason}"
    if len(left_out) > MOST_LEFT_OUT:
        yield f"         and {len(left_out) - MOST_LEFT_OUT} more (all of them in the run's manifest.json)"


def _documents(settings: Settings) -> tuple[list[str], list[tuple[int, int]]]:
    """Lines about the tasks, and (prompt tokens, new tokens) of every document whose length is known."""
    offline, other = selection.split_names(settings)
    lines, cost = [], []
    if offline:
        lines.append(_number_of(", ".join(offline), len(offline), settings))
    for name in offline:
        new_tokens = TASKS[name].max_new_tokens if TASKS[name].output == "generate" else 0
        cost += [(length, new_tokens) for length in settings.lengths] * int(settings.num_samples)
    for name in other:
        if not ruler.is_asked(name):
            most = "all its documents" if settings.num_samples == "all" else f"up to {settings.num_samples} documents"
            lines.append(f"tasks    {name} (lm-eval): {most} each, not in the estimate of time")
            continue
        members = ruler.GROUPS.get(name, (name,))
        lines.append(_number_of(f"{name} (RULER)", len(members), settings))
        documents = ruler.MOST_DOCUMENTS if settings.num_samples == "all" else settings.num_samples
        cost += [(length, ruler.new_tokens(member)) for member in members for length in settings.lengths] * int(
            documents
        )
    return lines, cost


def _number_of(names: str, tasks: int, settings: Settings) -> str:
    lengths = ", ".join(map(str, settings.lengths))
    return f"tasks    {names}: {tasks} task(s), {settings.num_samples} documents each at {lengths} tokens"


def _time(runs: int, shape: estimate.Shape, cost: list[tuple[int, int]], settings: Settings, device: str) -> str:
    if not cost:
        return ""
    seconds = runs * estimate.seconds(shape, cost, settings, device)
    return f": about {estimate.duration(seconds)} on this machine, {estimate.ROUGH}"


def _published(settings: Settings) -> Iterator[str]:
    """What others published for this model, window by window."""
    rows = published_for(settings.to_dict(), settings.model)
    if not rows:
        return
    yield ""
    yield f"published numbers to stand beside ours, in percent: {rows[0]['source']}"
    by_window: dict[Any, list[str]] = {}
    for row in rows:
        entry = f"{row['label']} {row['name']} {100 * row['value']:g}"
        by_window.setdefault(row["window"], []).append(entry)
    for window, entries in by_window.items():
        yield f"  {'full' if window is None else f'w {window}'}: {', '.join(entries)}"
