"""`sa-eval coverage` from its settings to its folder, arm by arm. What is finished is on the disk before the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sa_eval import environment, machine
from sa_eval.coverage.settings import CoverageSettings, coverage_settings
from sa_eval.coverage.types import Coherence, CoverageFailure, CoverageResult, CoverageRow, Curve, MixingRow, World
from sa_eval.messages import one_line
from sa_eval.processes import interrupts
from sa_eval.progress import Progress
from sa_eval.records import continued, lock, result_folder
from sa_eval.records.directory import RunDirectory
from sa_eval.records.keys import code_hash
from sa_eval.settings import layer_sets
from sa_eval.settings.arm import Arm, Options
from sa_eval.settings.arms import arms_from
from sa_eval.settings.roles import PLAN
from sa_eval.settings.values import SettingsError
from sa_patch import Plan, Variant, analysis
from sa_patch.analysis import layers
from sa_patch.analysis.mixing import LARGEST
from sa_patch.saved import from_config
from sa_patch.variants import make_variant

KIND = "coverage"


def run(asked: CoverageSettings, progress: Progress) -> tuple[RunDirectory, CoverageResult, int]:
    """Simulate every arm at every length into a new folder: the folder, the result, the exit status.

    Raises:
        SettingsError: for whatever the user can mend, before anything is written.
    """
    result_folder.check_out(asked.of.out)
    arms, result = _arms(asked), _head(asked)
    directory = result_folder.create(KIND, asked.of.out, "layers")
    with lock.hold(directory.lock):
        return directory, result, _fill(directory, asked, arms, result, progress)


def resume(path: str, progress: Progress) -> tuple[RunDirectory, CoverageResult, int]:
    """Simulate what is missing or failed in a folder, nothing else.

    Raises:
        SettingsError: code or versions are not the recorded ones; nothing is overwritten.
    """
    earlier, directory = result_folder.read_result(path, KIND, CoverageResult), RunDirectory(Path(path))
    asked = coverage_settings({name: value for name, value in earlier.settings.items() if _was_given(name, value)})
    arms, result = _arms(asked), _head(asked)
    if earlier.finished and not earlier.failures:
        progress.say(f"{path}: everything is simulated, nothing is left to do")
        return directory, earlier, 0
    continued.check_continued(path, continued.computing(earlier), continued.computing(result))
    result.started, result.settings, result.rows = earlier.started, earlier.settings, list(earlier.rows)
    with lock.hold(directory.lock):
        return directory, result, _fill(directory, asked, arms, result, progress)


def _was_given(name: str, value: Any) -> bool:
    return value is not None and name != "out" and not (name == "plans" and not value)


def _arms(asked: CoverageSettings) -> list[tuple[Arm, Variant | Plan, int]]:
    """Every sparse arm with its variant and the depth of its stack.

    Raises:
        SettingsError: for arms that no stack can be made of: keys chosen by content, layers that are not there.
    """
    found = []
    for arm in arms_from(asked.of):
        arm.check()
        if arm.window is None:
            continue
        try:
            variant = variant_of(arm, asked.layers)
            depth = len(variant.variants) if isinstance(variant, Plan) else asked.layers
            for length in asked.of.lengths:
                layers.check(variant, length, depth, arm.seeds)
            small = min(asked.of.lengths)
            list(layers.distinct_patterns(variant, small, depth, 0))
        except ValueError as error:
            raise SettingsError(
                f"arm {arm.name} cannot be simulated: {one_line(error)}. `sa-eval fidelity` measures it on texts"
            ) from error
        found.append((arm, variant, depth))
    if not found:
        raise SettingsError("modes holds full only, which connects everything in one layer: name a sparse one")
    return found


def variant_of(arm: Arm, depth: int) -> Variant | Plan:
    """What the layers of an arm run."""
    if arm.mode == PLAN:
        return from_config(arm.options["plan"], arm.name)[0]
    options: Options = dict(arm.options)
    if "dense_layers" in options:
        options["dense_layers"] = layer_sets.resolve(options["dense_layers"], depth)
    return make_variant(arm.mode, {"window": arm.window or 1, **options})


def _head(asked: CoverageSettings) -> CoverageResult:
    return CoverageResult(
        schema=result_folder.VERSION,
        started=environment.now(),
        settings=asked.to_dict(),
        model={},
        versions=environment.versions(),
        hardware=machine.hardware("cpu"),
        code=code_hash(),
        arms=[arm.name for arm, _, _ in _arms(asked)],
        fly=dict(analysis.FLY),
    )


def _fill(
    directory: RunDirectory,
    asked: CoverageSettings,
    arms: list[tuple[Arm, Variant | Plan, int]],
    result: CoverageResult,
    progress: Progress,
) -> int:
    """Simulate what `result` lacks; the file is there before the first row. Returns the exit status."""
    done = {(row.arm, row.length) for row in result.rows}
    wanted = [(arm, variant, depth, length) for length in asked.of.lengths for arm, variant, depth in arms]
    left = [item for item in wanted if (item[0].name, item[3]) not in done]
    order = {(arm.name, length): number for number, (arm, _, _, length) in enumerate(wanted)}
    result_folder.write_result(directory, KIND, result)
    total, ahead = (sum(_work(asked, *item) for item in items) for items in (wanted, left))
    try:
        with progress.bar(total, KIND, unit="layer", done=total - ahead) as bar:
            for arm, variant, depth, length in left:
                bar.describe(f"{arm.name} at {length:,}")
                try:
                    row = simulate(asked, arm, variant, depth, length, bar.advance)
                except (ValueError, RuntimeError) as error:
                    result.failures.append(CoverageFailure(arm.name, length, one_line(error)))
                    progress.say(f"failed: {arm.name} at {length:,} tokens: {one_line(error)}")
                else:
                    result.rows = sorted([*result.rows, row], key=lambda row: order[row.arm, row.length])
                result_folder.write_result(directory, KIND, result)
    except KeyboardInterrupt as stop:
        result.interrupted = True
        result_folder.write_result(directory, KIND, result)
        progress.say(f"interrupted: finished arms are kept; `sa-eval resume {directory.path}` continues")
        return interrupts.status(stop)
    result.finished = environment.now()
    result_folder.write_result(directory, KIND, result)
    return 1 if result.failures else 0


def _work(asked: CoverageSettings, arm: Arm, variant: Variant | Plan, depth: int, length: int) -> int:
    """Layers that `simulate` tells the bar of."""
    random = layers.is_random(variant)
    exact = length <= analysis.EXACT if asked.sources is None else asked.sources >= length
    seeds = len(asked.of.seeds)
    curves = len(asked.directions) * depth * (seeds if random or not exact else 1)
    mixed = len(asked.directions) * depth * (seeds if random else 1) if length <= LARGEST else 0
    return curves + mixed


def simulate(
    asked: CoverageSettings,
    arm: Arm,
    variant: Variant | Plan,
    depth: int,
    length: int,
    advance: Callable[[int], None],
) -> CoverageRow:
    """Everything about one arm at one length."""
    seeds, ways = asked.of.seeds, [way == "causal" for way in asked.directions]
    curves = [
        analysis.coverage(variant, length, depth, seeds, causal=causal, sources=asked.sources, progress=advance)
        for causal in ways
    ]
    mixed = [
        analysis.mixing(variant, length, depth, seeds, causal=causal, progress=advance)
        for causal in ways
        if length <= LARGEST
    ]
    world = analysis.small_world(variant, length, depth, seeds)
    beside = ("density", "random_clustering", "random_path_length", "ring_clustering", "ring_path_length", "index")
    window = variant.window_at(length) if isinstance(variant, Variant) else None
    return CoverageRow(
        arm=arm.name,
        label=arm.label,
        window=arm.window,
        length=length,
        layers=depth,
        curves=[Curve(**_plain(asdict(one))) for one in curves],
        coherence=Coherence(**_plain(asdict(analysis.local_coherence(variant, length, depth, seeds, last=asked.last)))),
        world=World(**_plain({**asdict(world), **{name: getattr(world, name) for name in beside}})),
        mixing=[MixingRow(**_plain({**asdict(one), "mixing_time": one.mixing_time})) for one in mixed],
        log_depth=None if window is None or window < 2 else analysis.theory.log_depth(length, window),
    )


def _plain(value: Any) -> Any:
    """As JSON holds it: lists, and null for what is not a number."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
