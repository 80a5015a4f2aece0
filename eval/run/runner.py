"""The course of a run: load once, prepare the documents once, then apply, score and restore arm by arm.

Every start is a session on one run directory: the first one makes it, `resume` continues it, and both go the same way.
A task or an arm that fails is recorded and the others go on. Everything is appended to the directory as it happens;
tables and reports read those files only (summary.py, report.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sa_eval.documents import selection
from sa_eval.errors import UserError
from sa_eval.loading import model_files, models, sources
from sa_eval.processes import interrupts, tensor_parallel
from sa_eval.processes.ranks import DONE, Crew, RankLost, Ranks, find
from sa_eval.progress import Progress
from sa_eval.records import lock, result_folder, resume
from sa_eval.records.directory import MANIFEST, RunDirectory
from sa_eval.run import chunks
from sa_eval.run.chunks import Chunk
from sa_eval.run.session import ArmWork, Session
from sa_eval.settings.arm import check_kernels
from sa_eval.settings.arms import Arm, arms_from
from sa_eval.settings.config import Settings, SettingsError, to_yaml


@dataclass(frozen=True)
class Outcome:
    """How a session ended; `status` is the exit status of one that was stopped, None when it came to its end."""

    directory: RunDirectory
    main: bool = True
    status: int | None = None


def run(settings: Settings, progress: Progress) -> Outcome:
    """Run everything the settings ask for and leave the records in a new directory."""
    ranks = _ranks(settings)
    source = sources.find(settings.model)
    arms = _checked_arms(settings)
    if ranks.main:
        result_folder.check_out(settings.out)

    def make() -> str:
        return str(RunDirectory.create(settings.out, source.name).path)

    with _loaded(settings, source, ranks, progress) as loaded:
        path = ranks.from_main(make)
        with _locked(path, ranks):
            if ranks.main:
                RunDirectory(Path(path)).write_text("config.yaml", to_yaml(replace(settings, out=None)))
                progress.say(f"run directory: {path}")
            return _run_in(Path(path), settings, loaded, arms, progress, ranks)


def resume_run(path: str, progress: Progress) -> Outcome:
    """Continue the run in a directory: what is missing or failed, nothing else."""
    directory, settings = resume.open_directory(path)
    ranks = _ranks(settings)
    arms = _checked_arms(settings)
    with _locked(path, ranks), _loaded(settings, sources.find(settings.model), ranks, progress) as loaded:
        return _run_in(directory.path, settings, loaded, arms, progress, ranks)


def _run_in(
    path: Path, settings: Settings, loaded: models.Loaded, arms: list[Arm], progress: Progress, ranks: Ranks
) -> Outcome:
    if not settings.tp:
        return run_loaded(settings, loaded, arms, RunDirectory(path, ranks.rank), progress, ranks)
    with tensor_parallel.own_directory(path, ranks) as (directory, crew):
        outcome = run_loaded(settings, loaded, arms, directory, progress, together=crew)
        if outcome.status is None:
            tensor_parallel.finish(crew)
        return replace(outcome, main=ranks.main)


def run_loaded(
    settings: Settings,
    loaded: models.Loaded,
    arms: list[Arm],
    directory: RunDirectory,
    progress: Progress,
    ranks: Ranks | None = None,
    *,
    together: Crew | None = None,
) -> Outcome:
    """One session, for a model that is already in memory; `together` are the processes that hold it."""
    check_kernels(arms, loaded.model)
    session = Session(settings, loaded, arms, directory, progress, ranks or Ranks(), together)
    with session.crew.at_work():
        try:
            session.prepare()
            if not session.start():  # the main rank says why
                return Outcome(directory, session.ranks.main, status=2)
            score(session)
            session.crew.announce(DONE)
            if session.ranks.main:
                _wait_for_others(session)
        except KeyboardInterrupt as stop:
            if not directory.has(MANIFEST):
                raise
            return _stopped(session, "interrupted by the user", interrupts.status(stop))
        except RankLost as stop:
            return _stopped(session, str(stop), 1)
        session.finish()
    return Outcome(directory, session.ranks.main)


def score(session: Session) -> None:
    """This rank's share of what is missing, arm by arm."""
    everything = chunks.chunks_of(session.usable, session.tasks, session.batch_size)
    share = session.ranks.share(chunks.missing(everything, session.done))
    total = sum(len(chunk.indices) for chunk in everything)
    left = sum(len(chunk.indices) for chunk in share)
    if session.earlier:
        session.progress.say(f"{len(session.done)} of {total} documents (per arm and seed) have their score")
    total, done = (total, total - left) if session.ranks.world == 1 else (left, 0)
    with session.progress.bar(total, "evaluation", unit="document", done=done) as bar, session.progress.quiet():
        scorer = session.scorer(bar)
        for (arm, seed), members in groupby(share, key=lambda chunk: (chunk.arm, chunk.seed)):
            score_arm(session, scorer, arm, seed, list(members), bar)


def score_arm(session: Session, scorer: Any, arm: Arm, seed: int, members: Sequence[Chunk], bar: Any) -> None:
    """Chunks of one arm with one seed; the model is as before afterwards, also after an exception."""
    try:
        patch = arm.apply(session.loaded.model, seed)
    except Exception as error:
        session.record_unasked(arm, seed, members, error)
        bar.advance(sum(len(chunk.indices) for chunk in members))
        return
    try:
        work = ArmWork(patch)
        for chunk in members:
            session.check()
            bar.describe(_title(session, arm, seed, chunk))
            scored = scorer.score(chunk)
            if scored.failures:  # a process that is lost is no document's failure
                session.check()
            session.record(chunk, scored, work.since_last_time(arm, seed, scored.notes))
    finally:
        if patch is not None:
            patch.restore()


def _title(session: Session, arm: Arm, seed: int, chunk: Chunk) -> str:
    ranks = session.ranks
    share = f"share 1 of {ranks.world} · " if ranks.world > 1 else ""
    return f"{share}{arm.name}{f' seed {seed}' if len(arm.seeds) > 1 else ''} · {chunk.task.key}"


def _wait_for_others(session: Session) -> None:
    if session.ranks.world > 1:
        session.progress.say("waiting for the other processes to finish their shares")
        session.crew.wait_for(DONE)


def _stopped(session: Session, reason: str, status: int) -> Outcome:
    """What is finished is reported by the main rank; the others just end."""
    if session.ranks.main:
        with contextlib.suppress(UserError):  # a full disk must not hide why it stopped
            session.record_stop(reason)
        session.progress.say(
            f"{reason}: reporting what is finished; `sa-eval resume {session.directory.path}` continues"
        )
    return Outcome(session.directory, session.ranks.main, status)


def _ranks(settings: Settings) -> Ranks:
    ranks = find(models.pick_device(settings))
    tensor_parallel.check(settings, ranks)
    if ranks.world > 1 and settings.device_map is not None:
        raise SettingsError(
            f"device_map {settings.device_map!r} spreads one model over all devices, but {ranks.world} processes were "
            "launched, which hold one each: use one or the other"
        )
    return ranks


def _checked_arms(settings: Settings) -> list[Arm]:
    selection.check_tasks(settings)
    arms = arms_from(settings)
    for arm in arms:
        arm.check()
    return arms


@contextlib.contextmanager
def _loaded(settings: Settings, source: Any, ranks: Ranks, progress: Progress) -> Iterator[models.Loaded]:
    """The model in memory, on this rank's own device."""
    placed = settings if ranks.device is None else replace(settings, device=ranks.device)
    with model_files.code_kept_out(settings):
        with progress.step(f"loading {settings.model}"):
            loaded = models.load(source, placed)
        selection.check_lengths(settings, models.max_tokens(loaded.model))
        yield loaded


@contextlib.contextmanager
def _locked(path: str, ranks: Ranks) -> Iterator[None]:
    """The main rank's hold on the directory."""
    if not ranks.main:
        yield
        return
    directory = RunDirectory(Path(path))
    with lock.hold(directory.lock):
        Crew.clear(directory)
        yield
