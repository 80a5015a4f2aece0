"""Owns the course of `sa-eval fidelity`: texts, model, passages, then arm by arm; finished ones are on disk at once.

An arm that fails is recorded and the others go on. Pictures and tables are made from the results alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa_eval import environment
from sa_eval.fidelity import buckets, layer_errors, measuring, summary, texts
from sa_eval.loading import model_files, models, sources
from sa_eval.messages import one_line, shown
from sa_eval.progress import Bar, Progress
from sa_eval.records.directory import RunDirectory
from sa_eval.run import runner
from sa_eval.settings.arm import Arm
from sa_eval.settings.arms import arms_from, left_out
from sa_eval.settings.config import Settings, SettingsError

DOCUMENTS = 2  # of each task of the bundled texts
PASSAGES = 8  # of each text of the user
ALL = "all"
FEW_PASSAGES = 10  # an interval from fewer is too narrow
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
class Request:
    """What is asked besides the settings: files (none: the bundled texts), and how much of each text.

    `passages` is a number, ALL, or None for the default: PASSAGES of a file, DOCUMENTS of a task.
    """

    files: tuple[str, ...] = ()
    passages: int | str | None = None


def run(settings: Settings, request: Request, progress: Progress) -> tuple[RunDirectory, dict[str, Any]]:
    """Measure every arm and leave fidelity.json; returns the run directory and what is in it.

    Raises:
        SettingsError: for whatever the user can mend, before anything is written.
    """
    given = texts.read(request.files)
    source = sources.find(settings.model)
    arms = arms_from(settings)
    for arm in arms:
        arm.check()
    runner.check_out(settings.out)
    with model_files.code_kept_out(settings):
        _check_lengths(settings.lengths, models.max_tokens(models.empty_model(source, settings)))
        with progress.step(f"loading {settings.model}"):
            loaded = models.load(source, settings)
        with progress.step("texts"):
            cuts, notes = passages(settings, request, given, loaded)
        subject = measuring.Subject.of(loaded.model, cuts[0].passages[0])
        directory = _directory(settings, source.name)
        results = _about(settings, loaded, arms, cuts, notes)
        for cut in cuts:
            progress.say(used(cut))
        try:
            measure_arms(subject, arms, cuts, results, directory, progress)
        except KeyboardInterrupt:
            results["interrupted"] = True
            progress.say(kept(results))
        results["finished"] = environment.now()
        directory.write_json("fidelity.json", results)
        return directory, results


def measure_arms(
    subject: measuring.Subject,
    arms: Sequence[Arm],
    cuts: Sequence[texts.Cut],
    results: dict[str, Any],
    directory: RunDirectory,
    progress: Progress,
) -> None:
    """Fill `results` arm by arm and write it after each."""
    tokens = sum(len(passage.ids) for cut in cuts for passage in cut.passages)
    with progress.bar(tokens * sum(1 + len(arm.seeds) for arm in arms), "fidelity", unit="token") as bar:
        for arm in arms:
            steps = _Steps(bar)
            try:
                with progress.quiet():
                    cells = [summary.summarise(measuring.measure(subject, arm, cut, steps)) for cut in cuts]
            except SettingsError:  # no arm's fault
                raise
            except Exception as error:  # refused by this model, out of memory
                results["failures"].append({"arm": arm.name, "error": one_line(error)})
                progress.say(f"failed: {arm.name}: {one_line(error)}")
            else:
                results["cells"] += cells
            steps("", tokens * (1 + len(arm.seeds)) - steps.done)
            directory.write_json("fidelity.json", results)


class _Steps:
    """Tells the bar what is measured, and knows how much of an arm was."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self.done = bar, 0

    def __call__(self, text: str, count: int) -> None:
        if text:
            self._bar.describe(text)
        self._bar.advance(count)
        self.done += count


def passages(
    settings: Settings, request: Request, given: Sequence[texts.Text], loaded: models.Loaded
) -> tuple[list[texts.Cut], list[str]]:
    """The passages of every length, and what a reader must know about them."""
    if given:
        most = None if request.passages == ALL else request.passages or PASSAGES
        cuts = [texts.cut(given, loaded.tokenizer, length, most) for length in settings.lengths]
        guessing = [GUESSING] if loaded.source.name in sources.BUNDLED else []
        return cuts, [*guessing, *_notes(cuts, given)]
    if request.passages == ALL:
        raise SettingsError("passages `all` has no meaning for the bundled texts, which are generated: give a number")
    trained = loaded.source.name in sources.BUNDLED
    end = [loaded.tokenizer.eos_token_id] if trained else []
    count = request.passages or DOCUMENTS
    found = [texts.bundled(loaded.tokenizer, length, count, settings.doc_seed, end) for length in settings.lengths]
    cuts = [cut for cut, _ in found]
    left_out = [f"{cut.length} tokens are too few for {', '.join(misfits)}" for cut, misfits in found if misfits]
    return cuts, [*left_out, ANSWERS_ONLY, *_notes(cuts, given)]


GUESSING = "The bundled models know the bundled texts only: on others they guess, and their perplexity says nothing."
ANSWERS_ONLY = (
    "Bundled texts: the answers in them are scored. KL all takes every token, also those that the bundled models were "
    "never trained to predict, and so does KL by position."
)


def _notes(cuts: Sequence[texts.Cut], given: Sequence[texts.Text]) -> list[str]:
    """What the intervals rest on."""
    counts = [len(cut.passages) for cut in cuts]
    if min(counts) == 1:
        return ["One passage was read: nothing can be said about other texts, so there is no interval."]
    notes = []
    if len(given) == 1:
        notes.append("All passages are of one text: intervals speak about that text, not about others.")
    if min(counts) < FEW_PASSAGES:
        notes.append(f"Intervals from {min(counts)} passages are too narrow: give more text, or shorter lengths.")
    return notes


def _check_lengths(lengths: Sequence[int], limit: int | None) -> None:
    if limit is not None and max(lengths) > limit:
        raise SettingsError(
            f"length {max(lengths)} is longer than the model's {limit} positions: ask for shorter lengths"
        )
    if min(lengths) < texts.LEAST_TOKENS:
        raise SettingsError(f"length {min(lengths)} is too short: passages have at least {texts.LEAST_TOKENS} tokens")


def _directory(settings: Settings, name: str) -> RunDirectory:
    out = settings.out or str(Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-fidelity-{name}")
    RunDirectory.refuse_used(out)
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"out {shown(out)} cannot be made: {one_line(error)}") from error
    return RunDirectory(Path(out))


def _about(
    settings: Settings, loaded: models.Loaded, arms: Sequence[Arm], cuts: Sequence[texts.Cut], notes: list[str]
) -> dict[str, Any]:
    """What the numbers belong to; `cells` and `failures` are filled as arms finish."""
    return {
        "schema": 1,
        "started": environment.now(),
        "finished": None,
        "interrupted": False,
        "settings": settings.to_dict(),
        "model": loaded.identity.to_dict(),
        "versions": environment.versions(),
        "hardware": environment.hardware(loaded.model.device),
        "measures": MEASURES,
        "probed_places": layer_errors.PROBED,
        "sink_tokens": buckets.SINKS,
        "texts": [{"length": cut.length, **row} for cut in cuts for row in cut.texts],
        "notes": notes,
        "arms": [arm.to_dict() for arm in arms],
        "cells": [],
        "failures": [],
        "left_out": left_out(settings),
    }


def used(cut: texts.Cut) -> str:
    """How many tokens are used and how many are left, in one line."""
    count, left = sum(row["tokens_used"] for row in cut.texts), sum(row["tokens_left"] for row in cut.texts)
    rest = f"; {left:,} tokens of the texts are left out (--passages, --lengths)" if left else ""
    return f"length {cut.length}: {len(cut.passages)} passages of {len(cut.texts)} texts, {count:,} tokens{rest}"


def kept(results: dict[str, Any]) -> str:
    """What an interruption leaves."""
    finished = list(dict.fromkeys(cell["arm"] for cell in results["cells"]))
    failed = [failure["arm"] for failure in results["failures"]]
    missing = [arm["name"] for arm in results["arms"] if arm["name"] not in (*finished, *failed)]
    have = f"kept {', '.join(finished)}" if finished else "no arm was finished"
    return f"interrupted: {have}; not measured: {', '.join(missing)}"
