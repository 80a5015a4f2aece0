"""What one session shares between its steps, and what it writes: manifest, documents, records, failures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sa_eval import environment, machine
from sa_eval.documents import selection
from sa_eval.lm.exact import ExactLM
from sa_eval.loading import models
from sa_eval.processes.ranks import Crew, Ranks
from sa_eval.progress import Progress
from sa_eval.records import resume, types
from sa_eval.records.directory import MANIFEST, RunDirectory
from sa_eval.records.keys import Keys, parts_of
from sa_eval.records.opening import differences
from sa_eval.records.types import ArmRow, ArmRun, Facts, Failure, Manifest, Place, SessionRow
from sa_eval.run import preparation, samples
from sa_eval.run.chunks import Chunk
from sa_eval.run.scoring import Scored, Scorer
from sa_eval.run.trouble import DocumentsFailed, Trouble, trouble_of
from sa_eval.settings.arms import Arm, left_out
from sa_eval.settings.config import Settings, SettingsError

WORDS_SHOWN = 300


class ArmWork:
    """What an applied arm did, chunk by chunk, so that a killed process leaves it behind too."""

    def __init__(self, patch: Any | None) -> None:
        self._patch, self._time, self._calls = patch, time.perf_counter(), _calls(patch)
        text = "the model's own attention, not patched" if patch is None else patch.describe()
        self._describe: str | None = "\n".join(line for line in text.splitlines() if not line.startswith("calls "))

    def since_last_time(self, arm: Arm, seed: int, notes: list[str]) -> ArmRun:
        now, calls, done = time.perf_counter(), _calls(self._patch), None
        if calls is not None:
            done = [
                {kind: new[kind] - old[kind] for kind in new} for new, old in zip(calls, self._calls or (), strict=True)
            ]
        row = ArmRun(arm.name, seed, round(now - self._time, 3), done, self._describe, notes)
        self._time, self._calls, self._describe = now, calls, None
        return row


def _calls(patch: Any | None) -> list[dict[str, int]] | None:
    return None if patch is None else [dict(layer) for layer in patch.calls]


class Session:
    """One start of a run, on one rank."""

    def __init__(
        self,
        settings: Settings,
        loaded: models.Loaded,
        arms: list[Arm],
        directory: RunDirectory,
        progress: Progress,
        ranks: Ranks,
        together: Crew | None = None,
    ) -> None:
        self.settings, self.loaded, self.arms = settings, loaded, arms
        self.directory, self.progress, self.ranks = directory, progress, ranks
        self.earlier = directory.manifest() if directory.has(MANIFEST) else None
        self.sessions = self.earlier.sessions if self.earlier else []
        self.crew = Crew(ranks, directory, len(self.sessions) + 1)
        self._together = together
        self.keys = Keys(parts_of(loaded, models.input_device(loaded.model).type))
        self.started = environment.now()
        self.tasks: list[Any] = []
        self.usable: list[Arm] = []
        self.done: set[Place] = set()
        with progress.quiet():
            self.lm = ExactLM(loaded.model, loaded.tokenizer, batch_size=self.batch_size(max(settings.lengths)))

    # --- before scoring ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Documents and what is done already; nothing is written but failures to build a task."""
        if self.earlier and self.ranks.main:
            resume.check_run(self.directory, self.earlier, self.settings, self.keys)
        self.tasks = selection.all_tasks(self.settings, self.lm, self.progress, self._task_failed)
        if self.earlier and self.ranks.main:
            rows = [task.row() for task in self.tasks]
            resume.check_documents(self.directory, self.earlier, rows)
            resume.check_records(self.directory, self.keys, self.arms, rows)
        self.done = {record.place for record in self.directory.records() if record.error is None}

    def start(self) -> bool:
        """The main rank writes and measures, all of them then know what is to be scored; False: nothing is.

        Raises:
            SettingsError: on the main rank, whatever forbids scoring.
        """
        if not self.ranks.main:
            self.crew.announce("prepared", self._prepared())
            scoring = self.crew.wait_for("scoring", [0])[0]
            self.tasks = [task for task in self.tasks if scoring and task.key in scoring["tasks"]]
            self.usable = [arm for arm in self.arms if scoring and arm.name in scoring["arms"]]
            return scoring is not None
        scoring = None
        try:
            self._agree(self.crew.wait_for("prepared"))
            self._write_manifest()
            self._measure()
            scoring = {"tasks": [task.key for task in self.tasks], "arms": [arm.name for arm in self.usable]}
        finally:
            self.crew.announce("scoring", scoring)
        return True

    def _prepared(self) -> Facts:
        """What has to be alike on every rank: a digest per task of its documents' hashes, and the parts of the keys."""
        digests = {task.key: hashlib.sha256("".join(task.hashes).encode()).hexdigest() for task in self.tasks}
        return {"tasks": digests, "parts": self.keys.parts}

    def _agree(self, others: dict[int, Facts]) -> None:
        """Every rank holds the same model, code and documents; a task that one of them could not build is left out."""
        mine = self._prepared()
        for rank, theirs in others.items():
            found = differences(mine["parts"], theirs["parts"])
            built = {key: value for key, value in theirs["tasks"].items() if key in mine["tasks"]}
            found += [f"the documents of {key}" for key in built if built[key] != mine["tasks"][key]]
            if found:
                raise SettingsError(f"process {rank} is not like process 0: {'; '.join(found)}")
            for key in [key for key in mine["tasks"] if key not in built]:
                self.record_failure(None, key, f"process {rank} could not build it")
                self.tasks = [task for task in self.tasks if task.key != key]

    def _write_manifest(self, finished: str | None = None) -> None:
        device = models.input_device(self.loaded.model)
        hardware = machine.hardware(device)
        manifest = Manifest(
            schema=types.VERSION,
            started=self.earlier.started if self.earlier else self.started,
            settings=self.settings.to_dict(),
            model=self.loaded.identity.to_dict(),
            versions=environment.versions(),
            hardware=hardware,
            arms=[ArmRow(**arm.to_dict()) for arm in self.arms],
            left_out=[ArmRow(**row) for row in left_out(self.settings)],
            tasks=resume.merged_tasks(self.earlier, [task.row() for task in self.tasks]),
            keys=self.keys.parts,
            sessions=[*self.sessions, SessionRow(self.started, self.ranks.world, hardware)],
            finished=finished,
        )
        self.directory.write_manifest(manifest)

    def _measure(self) -> None:
        if not self.tasks:
            raise SettingsError(
                f"no task could be prepared; the reasons are in {self.directory.path / 'failures.jsonl'}: "
                f"{self.directory.failures()[0].error}"
            )
        known = {(row.task, row.index) for row in self.directory.prompts()}
        for task in self.tasks:
            self.directory.append(*(row for row in samples.prompts(task) if (task.key, row.index) not in known))
        model, directory = self.loaded.model, self.directory
        self.usable = preparation.budgets(model, self.arms, self.tasks, directory, self._arm_failed)
        if self.settings.speed:
            preparation.latency(self.lm, self.usable, self.tasks, directory, self.progress, self._arm_failed)
        preparation.batch_invariance(self.lm, self.usable, self.tasks, directory, self.progress)

    # --- while scoring -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise RankLost when a process is gone that shares the documents or holds part of the model."""
        self.crew.check()
        if self._together is not None:
            self._together.check()

    def batch_size(self, tokens: int) -> int:
        """Documents per forward pass, where prompts have about so many tokens."""
        return models.pick_batch_size(self.settings, models.input_device(self.loaded.model), tokens)

    def scorer(self, bar: Any) -> Any:
        return Scorer(self.lm, bar, unsafe_code=self.settings.confirm_unsafe_code)

    def record(self, chunk: Chunk, scored: Any, work: ArmRun | None = None) -> None:
        """Records last: one never stands without the work it took, nor a failed document without its reason."""
        if work is not None:
            self.directory.append(work)
        task, arm, seed = chunk.task, chunk.arm, chunk.seed
        for failed in scored.failures:
            self._fail(arm, task.key, failed.trouble, seed, failed.documents)
        rows = [replace(row, key=self.keys.of(arm, seed, task.key, row.hash)) for row in scored.records]
        self.directory.append_records(rows)

    def record_unasked(self, arm: Arm, seed: int, members: Sequence[Chunk], error: Exception) -> None:
        """The documents of an arm that could not be applied: they count as wrong."""
        trouble = trouble_of(error)
        for chunk in members:
            failed = DocumentsFailed(trouble, list(chunk.indices))
            self.record(chunk, Scored(samples.failed(chunk, chunk.indices, trouble.message), [failed]))

    def record_stop(self, reason: str) -> None:
        """Why this session ended before its end."""
        self.directory.append(Failure(None, None, None, reason, self.crew.session))

    def record_failure(self, arm: Arm | None, task: str | None, error: Exception | str) -> None:
        """A failure that is not about single documents."""
        self._fail(arm, task, Trouble(error) if isinstance(error, str) else trouble_of(error))

    def finish(self) -> None:
        """Everything was tried; the manifest says so."""
        if self.ranks.main:
            self._write_manifest(finished=environment.now())

    def _task_failed(self, label: str, error: Exception) -> None:
        if self.ranks.main:
            self.record_failure(None, label, error)

    def _arm_failed(self, arm: Arm, task: str | None, error: Exception) -> None:
        self.record_failure(arm, task, error)

    def _fail(
        self,
        arm: Arm | None,
        task: str | None,
        trouble: Trouble,
        seed: int | None = None,
        documents: list[int] | None = None,
    ) -> None:
        name, session = arm.name if arm else None, self.crew.session
        self.directory.append(Failure(name, seed, task, trouble.message, session, trouble.traceback, documents))
        where = " · ".join(text for text in (name, task) if text)
        self.progress.say(f"failed: {where + ': ' if where else ''}{trouble.message.splitlines()[0][:WORDS_SHOWN]}")
