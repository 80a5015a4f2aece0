"""`sa-eval fidelity` from its settings to its folder: texts, model, passages, then arm by arm.

What is finished is on disk before the next begins, and `resume` measures only what is missing. An arm that fails is
recorded and the others go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from sa_eval import environment, estimate, machine
from sa_eval.errors import UserError
from sa_eval.fidelity import buckets, layer_errors, measuring, passages, sums, texts
from sa_eval.fidelity.types import ArmFailure, Fidelity, Request
from sa_eval.loading import model_files, models, sources
from sa_eval.messages import one_line
from sa_eval.processes import interrupts
from sa_eval.progress import Bar, Progress
from sa_eval.records import continued, lock, result_folder
from sa_eval.records.directory import RunDirectory
from sa_eval.records.keys import code_hash
from sa_eval.records.types import ArmRow, Facts, plain
from sa_eval.settings.arm import Arm, check_kernels
from sa_eval.settings.arms import arms_from, left_out
from sa_eval.settings.config import Settings, SettingsError, settings_from

KIND = "fidelity"
LOOKS = 2  # a pass whose layers are looked into takes about as long as so many
MEASURES = {
    "kl": "KL(full || arm) of the next-token distribution, in nats, mean over predictions",
    "agreement": "share of predictions where both prefer the same token",
    "nats": "cost of the token that really follows, arm minus full, in nats per token",
    "perplexity": "exp of the mean cost in nats; with several seeds, of the mean over seeds",
    "kept_mass": "share of the full model's attention mass on keys that the arm shows, mean over heads",
    "isolated_error": "relative error of the attention output, before its projection, when the arm attends with the "
    "full model's queries, keys and values; overall: mean of the layers",
    "attention_error": "the same in the patched model, errors of earlier layers included",
    "residual_error": "relative error of the residual stream after the layer, patched model; overall: last layer",
    "overall": "the scored predictions: the answers of bundled texts, every token of the user's own",
    "by position": "all predictions by tokens read before, the last one included",
    "by copy distance": "scored predictions, by how far back the token could be copied from: by attending to the last "
    "earlier occurrence of the same two tokens",
    "mass by distance": "tokens between query and key; the first tokens of the text apart",
}


@dataclass(frozen=True)
class Material:
    """What is measured: a loaded model, the arms, and the passages of every length with what must be known of them."""

    loaded: models.Loaded
    arms: Sequence[Arm]
    cuts: Sequence[texts.Cut]
    notes: list[str]


def run(settings: Settings, request: Request, progress: Progress) -> tuple[RunDirectory, Fidelity, int]:
    """Measure every arm into a new folder: the folder, what fidelity.json in it holds, and the exit status.

    Raises:
        SettingsError: for whatever the user can mend, before anything is written.
    """
    result_folder.check_out(settings.out)
    with _material(settings, request, progress) as material:
        results = head(settings, request, material)
        subject = measuring.Subject.of(material.loaded.model, material.cuts[0].passages[0])
        directory = result_folder.create(KIND, settings.out, material.loaded.source.name)
        with lock.hold(directory.lock):
            return directory, results, _fill(directory, results, subject, material, progress)


def resume(path: str, progress: Progress) -> tuple[RunDirectory, Fidelity, int]:
    """Measure what is missing or failed in a folder, nothing else.

    Raises:
        SettingsError: texts, model, code, versions or arms are not the recorded ones; nothing is overwritten.
    """
    earlier = result_folder.read_result(path, KIND, Fidelity)
    directory = RunDirectory(Path(path))
    wanted = len(earlier.arms) * len(earlier.settings["lengths"])
    if earlier.finished and not earlier.failures and len(earlier.cells) == wanted:
        progress.say(f"{path}: every arm is measured, nothing is left to do")
        return directory, earlier, 0
    if earlier.request is None:
        raise SettingsError(f"{path} cannot be continued: an older version made it, which did not keep what was asked")
    settings, request = settings_from({**earlier.settings, "out": None}), earlier.request
    with lock.hold(directory.lock), _material(settings, request, progress) as material:
        results = head(settings, request, material)
        continued.check_continued(path, _fixed(earlier), _fixed(results))
        results.started, results.settings, results.cells = earlier.started, earlier.settings, list(earlier.cells)
        subject = measuring.Subject.of(material.loaded.model, material.cuts[0].passages[0])
        progress.say(f"{len(results.cells)} of {wanted} arms and lengths are measured already")
        return directory, results, _fill(directory, results, subject, material, progress)


def _fixed(results: Fidelity) -> Facts:
    """What has to be the same when a result is continued."""
    arms = {arm.name: plain(arm) for arm in results.arms}
    rows = {f"{row.name} at {row.length}": plain(row) for row in results.texts}
    device = results.hardware["device"].partition(":")[0]
    return {**continued.computing(results), "arm": arms, "text": rows, "device": device}


@contextlib.contextmanager
def _material(settings: Settings, request: Request, progress: Progress) -> Iterator[Material]:
    """Everything that is refused is refused here, the cheapest first."""
    given = texts.read(request.files)
    passages.check_language(settings, given)
    source, arms = sources.find(settings.model), arms_from(settings)
    for arm in arms:
        arm.check()
    with model_files.code_kept_out(settings):
        passages.check_lengths(settings.lengths, models.max_tokens(models.empty_model(source, settings)))
        with progress.step(f"loading {settings.model}"):
            loaded = models.load(source, settings)
        check_kernels(arms, loaded.model)
        with progress.step("texts"):
            cuts, notes = passages.cut(settings, request, given, loaded)
        for cut in cuts:
            progress.say(passages.used(cut))
        yield Material(loaded, arms, cuts, notes)


def _fill(
    directory: RunDirectory, results: Fidelity, subject: measuring.Subject, material: Material, progress: Progress
) -> int:
    """Measure what `results` lacks; the file is there before the first measurement. Returns the exit status."""

    def save() -> None:
        result_folder.write_result(directory, KIND, results)

    save()
    left = missing(results, material.arms, material.cuts)
    about = estimate.duration(seconds(material.loaded, left))
    progress.say(f"result: {directory.path}; about {about} on this machine, {estimate.ROUGH}")
    try:
        measure_arms(subject, material.arms, material.cuts, results, save, progress)
    except KeyboardInterrupt as stop:
        results.interrupted = True
        save()
        progress.say(kept(results, directory))
        return interrupts.status(stop)
    results.finished = environment.now()
    save()
    return 1 if results.failures else 0


def missing(results: Fidelity, arms: Sequence[Arm], cuts: Sequence[texts.Cut]) -> list[tuple[Arm, texts.Cut]]:
    """Arms and lengths without a cell."""
    done = {(cell.arm, cell.length) for cell in results.cells}
    return [(arm, cut) for arm in arms for cut in cuts if (arm.name, cut.length) not in done]


def seconds(loaded: models.Loaded, left: Sequence[tuple[Arm, texts.Cut]]) -> float:
    """About how long these take."""
    device = models.input_device(loaded.model)
    shape = estimate.shape_of(loaded.model, "auto")
    calls = sum(LOOKS * (1 + len(arm.seeds)) * len(cut.passages) for arm, cut in left)
    return estimate.call_seconds(shape, LOOKS * sum(tokens(arm, cut) for arm, cut in left), calls, str(device))


def measure_arms(
    subject: measuring.Subject,
    arms: Sequence[Arm],
    cuts: Sequence[texts.Cut],
    results: Fidelity,
    save: Callable[[], None],
    progress: Progress,
) -> None:
    """Append every arm at every length that `results` lacks to its cells or failures, and save after each."""
    left = missing(results, arms, cuts)
    order = {(arm.name, cut.length): index for index, (arm, cut) in enumerate(product(arms, cuts))}
    total, ahead = (sum(tokens(arm, cut) for arm, cut in pairs) for pairs in (product(arms, cuts), left))
    with progress.bar(total, KIND, unit="token", done=total - ahead) as bar:
        for arm, cut in left:
            steps = _Steps(bar)
            try:
                with progress.quiet():
                    cell = sums.summarise(measuring.measure(subject, arm, cut, steps))
            except UserError:  # no arm's fault
                raise
            except Exception as error:  # refused by this model, out of memory
                results.failures.append(ArmFailure(arm=arm.name, error=one_line(error), length=cut.length))
                progress.say(f"failed: {arm.name} at {cut.length:,} tokens: {one_line(error)}")
            else:
                results.cells.append(cell)
                results.cells.sort(key=lambda cell: order[cell.arm, cell.length])
            steps("", tokens(arm, cut) - steps.done)
            save()


def tokens(arm: Arm, cut: texts.Cut) -> int:
    """What is read for an arm at a length: every passage by the full model, and by the patched one per seed."""
    return (1 + len(arm.seeds)) * sum(len(passage.ids) for passage in cut.passages)


class _Steps:
    """Tells the bar what is measured, and knows how much of an arm was."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self.done = bar, 0

    def __call__(self, text: str, count: int) -> None:
        if text:
            self._bar.describe(text)
        self._bar.advance(count)
        self.done += count


def head(settings: Settings, request: Request, material: Material) -> Fidelity:
    """What the numbers belong to; `cells` and `failures` are filled as arms finish."""
    return Fidelity(
        schema=result_folder.VERSION,
        started=environment.now(),
        settings=settings.to_dict(),
        request=request,
        model=material.loaded.identity.to_dict(),
        versions=environment.versions(),
        hardware=machine.hardware(models.input_device(material.loaded.model)),
        code=code_hash(),
        measures=MEASURES,
        probed_places=layer_errors.PROBED,
        sink_tokens=buckets.SINKS,
        texts=[row for cut in material.cuts for row in cut.texts],
        notes=material.notes,
        arms=[ArmRow(**arm.to_dict()) for arm in material.arms],
        left_out=[ArmRow(**row) for row in left_out(settings)],
    )


def kept(results: Fidelity, directory: RunDirectory) -> str:
    """What an interruption leaves."""
    finished = list(dict.fromkeys(cell.arm for cell in results.cells))
    failed = [failure.arm for failure in results.failures]
    missing = [arm.name for arm in results.arms if arm.name not in (*finished, *failed)]
    have = f"kept {', '.join(finished)}" if finished else "no arm was finished"
    rest = f"; not measured: {', '.join(missing)}" if missing else ""
    return f"interrupted: {have}{rest}; `sa-eval resume {directory.path}` continues"
