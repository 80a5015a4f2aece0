"""Several processes in one run: their ranks (from accelerate), and the messages between them.

One message goes through torch.distributed: the run directory. Everything later goes through files in it, watched by
polling, because a collective waits forever for a process that died. Every process holds a lock for its life, so the
others see at once that it ended, on any machine that shares the directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from sa_eval.errors import UserError
from sa_eval.records import lock
from sa_eval.records.directory import RunDirectory
from sa_eval.settings.values import SettingsError

Item = TypeVar("Item")
WORLD_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
FOLDER = "ranks"
DONE = "done"  # the stage after which a process may end
POLL_SECONDS = 0.1
LOADING = timedelta(hours=2)  # what one process may take longer than another to load a model


class RankLost(RuntimeError):
    """A process of this run ended before its share was done."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; `device` is its own, None when it runs alone."""

    rank: int = 0
    world: int = 1
    device: str | None = None

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every world-th item, beginning with the rank's own number."""
        return items[self.rank :: self.world]

    def from_main(self, make: Callable[[], Any]) -> Any:
        """What `make` returns on the main rank, on every rank; its UserError ends all of them."""
        if self.world == 1:
            return make()
        error, box = None, [None]
        if self.main:
            try:
                box = [("made", make())]
            except UserError as caught:
                error, box = caught, [("refused", str(caught))]
        broadcast_object_list(box, from_process=0)
        kind, content = box[0]  # type: ignore[misc]
        if error is not None:
            raise error
        if kind == "refused":
            raise UserError(content)
        return content


def launched() -> bool:
    """Whether a launcher started this process together with others."""
    return any(int(os.environ.get(name) or 1) > 1 for name in WORLD_SIZE)


def find(device: str) -> Ranks:
    """This process's rank, from accelerate.

    Args:
        device: the device that the settings lead to on this machine; each rank uses its own of that kind.

    Raises:
        SettingsError: one numbered device for several processes.
    """
    if not launched():
        return Ranks()
    kind, _, number = device.partition(":")
    if number:
        raise SettingsError(
            f"device {device!r} is one device, but several processes were launched: give --device {kind}, and each "
            "process takes its own"
        )
    state = PartialState(cpu=kind == "cpu", timeout=LOADING)
    if state.num_processes == 1:
        raise SettingsError(f"several processes were launched, but accelerate knows no way to share {kind} devices")
    return Ranks(state.process_index, state.num_processes, str(state.device))


class Crew:
    """The processes of one session at work in one directory; alone, nothing is written and nothing waits."""

    def __init__(self, ranks: Ranks, directory: RunDirectory, session: int) -> None:
        self.ranks, self.session = ranks, session
        self._directory, self._folder = directory, directory.path / FOLDER
        self._others = [rank for rank in range(ranks.world) if rank != ranks.rank]

    @staticmethod
    def clear(directory: RunDirectory) -> None:
        """Forget an earlier session's messages; the main rank's job, before it tells the others where the run is."""
        shutil.rmtree(directory.path / FOLDER, ignore_errors=True)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold a lock by which the others see that this process lives; for rank 0 that is the run's own lock.

        Waits until every process has come here; the caller of rank 0 holds the run's lock already.
        """
        if not self._others:
            yield
            return
        PartialState().wait_for_everyone()  # the main rank has forgotten an earlier session's messages
        self._folder.mkdir(exist_ok=True)
        with contextlib.nullcontext() if self.ranks.main else lock.hold(self._lock_of(self.ranks.rank)):
            PartialState().wait_for_everyone()
            yield
        if self.ranks.main:
            self.clear(self._directory)
        PartialState().destroy_process_group()  # nobody is waited for from here on

    def announce(self, stage: str, content: Any = None) -> None:
        """Let the others know that this process has come to a stage; `content` is JSON."""
        if self._others:
            self._directory.write_json(f"{FOLDER}/{self._message(stage, self.ranks.rank)}", {"content": content})

    def wait_for(self, stage: str, others: Sequence[int] | None = None) -> dict[int, Any]:
        """Wait until the others (or these) announced a stage; the content of their messages by rank.

        Raises:
            RankLost: one of them ended before.
        """
        waiting, received = list(self._others if others is None else others), {}
        waiting = [rank for rank in waiting if rank != self.ranks.rank]
        while waiting:
            # Before the messages: a process may announce a stage and then end.
            lost = {rank for rank in waiting if not self._alive(rank)}
            for rank in list(waiting):
                message = self._folder / self._message(stage, rank)
                if message.exists():
                    received[rank] = json.loads(message.read_text(encoding="utf-8"))["content"]
                    waiting.remove(rank)
            self._refuse(lost & set(waiting))
            if waiting:
                time.sleep(POLL_SECONDS)
        return received

    def check(self) -> None:
        """Raise RankLost when another process ended before it was done."""
        lost = {rank for rank in self._others if not self._alive(rank)}
        self._refuse({rank for rank in lost if not (self._folder / self._message(DONE, rank)).exists()})

    def _refuse(self, lost: set[int]) -> None:
        if lost:
            names = ", ".join(map(str, sorted(lost)))
            raise RankLost(f"process {names} of {self.ranks.world} (counted from 0) ended before its share was done")

    def _alive(self, rank: int) -> bool:
        return lock.is_held(self._lock_of(rank))

    def _lock_of(self, rank: int) -> Path:
        return self._folder / f"rank{rank}.lock" if rank else self._directory.lock

    def _message(self, stage: str, rank: int) -> str:
        return f"session{self.session}.rank{rank}.{stage}.json"
