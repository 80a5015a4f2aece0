"""`sa-eval calibrate` from its settings to its folder: texts, model, the plan, and what it costs.

What was measured is in the folder's journal before the next begins; the same command, or `sa-eval resume`, goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa_eval import environment, estimate, machine
from sa_eval.calibration.findings import findings
from sa_eval.calibration.settings import FREE, CalibrationSettings, calibration_settings
from sa_eval.calibration.steps import Steps, stages
from sa_eval.calibration.types import JOURNAL, CalibrationResult, TextRow
from sa_eval.fidelity import passages, texts
from sa_eval.loading import model_files, models, sources
from sa_eval.processes import interrupts
from sa_eval.progress import Progress
from sa_eval.records import continued, lock, result_folder
from sa_eval.records.directory import RunDirectory
from sa_eval.records.keys import code_hash
from sa_eval.records.opening import THEN_AND_NOW, differences
from sa_eval.records.types import Facts, plain
from sa_eval.settings.config import SettingsError
from sa_patch import calibration
from sa_patch.calibration.reading import Reader
from sa_patch.saved import config_of, write_config

KIND = "calibrate"
PREFILL = "Everything is measured while a text is read (prefill); generated tokens read the whole cache."


@dataclass(frozen=True)
class Material:
    """What is calibrated: a loaded model, and the texts as tokens."""

    loaded: models.Loaded
    texts: Sequence[tuple[str, Sequence[int]]]
    rows: list[TextRow]
    layers: int


def run(asked: CalibrationSettings, progress: Progress) -> tuple[RunDirectory, CalibrationResult, int]:
    """Calibrate into a new folder, or go on in one that the same settings began: folder, result, exit status.

    Raises:
        SettingsError: for whatever the user can mend, before anything is measured.
    """
    out = asked.of.out
    if out is not None and result_folder.kind_of(out) == KIND:
        earlier = read(out)
        found = differences(_deciding(earlier.settings), _deciding(asked.to_dict()), words=THEN_AND_NOW)
        if found:
            raise SettingsError(
                f"{out} holds a calibration with other settings: {'; '.join(found[:5])}; use another --out"
            )
        return _continue(out, earlier, asked, progress)
    result_folder.check_out(out)
    with _material(asked, progress) as material:
        result = head(asked, material)
        directory = result_folder.create(KIND, out, material.loaded.source.name)
        with lock.hold(directory.lock):
            return directory, result, _fill(directory, asked, material, result, progress)


def resume(path: str, progress: Progress) -> tuple[RunDirectory, CalibrationResult, int]:
    """Go on in a folder.

    Raises:
        SettingsError: texts, model, code or versions are not the recorded ones; nothing is overwritten.
    """
    earlier = read(path)
    return _continue(path, earlier, calibration_settings({**earlier.settings, "out": None}), progress)


def read(path: str) -> CalibrationResult:
    return result_folder.read_result(path, KIND, CalibrationResult)


def _deciding(settings: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in settings.items() if name not in FREE}


def _continue(
    path: str, earlier: CalibrationResult, asked: CalibrationSettings, progress: Progress
) -> tuple[RunDirectory, CalibrationResult, int]:
    directory = RunDirectory(Path(path))
    if earlier.found is not None:
        progress.say(f"{path}: the plan is there, nothing is left to do")
        return directory, earlier, 0
    with lock.hold(directory.lock), _material(asked, progress) as material:
        result = head(asked, material)
        continued.check_continued(path, _fixed(earlier), _fixed(result))
        result.started, result.settings = earlier.started, earlier.settings
        return directory, result, _fill(directory, asked, material, result, progress)


def _fixed(result: CalibrationResult) -> Facts:
    """What has to be the same when a calibration is continued."""
    rows = {row.name: plain(row) for row in result.texts}
    return {**continued.computing(result), "text": rows, "device": result.hardware["device"].partition(":")[0]}


@contextlib.contextmanager
def _material(asked: CalibrationSettings, progress: Progress) -> Iterator[Material]:
    """Everything that is refused is refused here, the cheapest first."""
    given = texts.read(asked.text)
    source = sources.find(asked.of.model)
    with model_files.code_kept_out(asked.of):
        passages.check_lengths(asked.lengths, models.max_tokens(models.empty_model(source, asked.of)))
        with progress.step(f"loading {asked.of.model}"):
            loaded = models.load(source, asked.of)
        with progress.step("texts"):
            ids = [(text.name, texts.encode(loaded.tokenizer, text.content)) for text in given]
        try:
            calibration.check(ids, **_asked(asked))
            layers = len(Reader(loaded.model).layers)
        except ValueError as error:
            raise SettingsError(f"this cannot be calibrated: {error}") from error
        rows = [
            TextRow(name=text.name, sha256=text.sha256, tokens=len(tokens))
            for text, (_, tokens) in zip(given, ids, strict=True)
        ]
        yield Material(loaded, ids, rows, layers)


def _asked(asked: CalibrationSettings) -> dict[str, Any]:
    """The arguments of `sa_patch.calibrate` that the settings decide."""
    names = ("window", "target_kl", "router_cost", "lengths", "passages", "swaps", "seed")
    return {name: getattr(asked, name) for name in names}


def head(asked: CalibrationSettings, material: Material) -> CalibrationResult:
    """What the numbers belong to."""
    guessing = [passages.GUESSING] if material.loaded.source.name in sources.BUNDLED else []
    return CalibrationResult(
        schema=result_folder.VERSION,
        started=environment.now(),
        settings=asked.to_dict(),
        model=material.loaded.identity.to_dict(),
        versions=environment.versions(),
        hardware=machine.hardware(models.input_device(material.loaded.model)),
        code=code_hash(),
        texts=material.rows,
        notes=[*guessing, PREFILL],
    )


def _fill(
    directory: RunDirectory,
    asked: CalibrationSettings,
    material: Material,
    result: CalibrationResult,
    progress: Progress,
) -> int:
    """Calibrate; the file is there before the first measurement. Returns the exit status."""
    result_folder.write_result(directory, KIND, result)
    model, passes = material.loaded.model, stages(asked, material.layers)
    count, device = sum(passes.values()), str(models.input_device(model))
    seconds = estimate.call_seconds(estimate.shape_of(model, "auto"), count * asked.lengths[0], count, device)
    about = f"about {estimate.duration(seconds)} on this machine, {estimate.ROUGH}"
    progress.say(f"result: {directory.path}; {count:,} passes over {asked.lengths[0]:,} tokens: {about}")
    try:
        with progress.bar(count, KIND, unit="pass") as bar, progress.quiet():
            steps = Steps(bar, passes)
            found = calibration.calibrate(
                model, material.texts, journal=directory.path / JOURNAL, tell=steps, **_asked(asked)
            )
            steps.finish()
    except KeyboardInterrupt as stop:
        result.interrupted = True
        result_folder.write_result(directory, KIND, result)
        progress.say(f"interrupted: what was measured is kept; `sa-eval resume {directory.path}` continues")
        return interrupts.status(stop)
    except ValueError as error:
        raise SettingsError(f"{directory.path}: {error}") from error
    write_config(directory.path, config_of(found.plan, "auto"))
    result.found, result.finished, result.interrupted = findings(found), environment.now(), False
    result_folder.write_result(directory, KIND, result)
    return 0
