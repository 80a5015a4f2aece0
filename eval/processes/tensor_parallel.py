"""One model over several processes (tensor parallel): how the processes of a run stay alike.

Every process asks the same documents in the same order, because each forward needs all of them. So each goes the way
of a run alone; only the main rank's is the run, the others work in folders of their own that nobody keeps. Imports
no torch.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sa_eval.processes.ranks import DONE, Crew, RankLost, Ranks
from sa_eval.records.directory import RunDirectory
from sa_eval.settings.config import Settings, SettingsError


def check(settings: Settings, ranks: Ranks) -> None:
    """Refuse tensor parallelism without processes, or together with accelerate's device map."""
    if not settings.tp:
        return
    if settings.device_map is not None:
        raise SettingsError("tp and device_map both place the model: use one of them")
    if ranks.world == 1:
        raise SettingsError(
            "tp splits the model over several processes, but this one was started alone: "
            "torchrun --nproc-per-node 2 -m sa_eval run --tp ..."
        )


@contextlib.contextmanager
def own_directory(path: Path, ranks: Ranks) -> Iterator[tuple[RunDirectory, Crew]]:
    """The directory this process writes to (rank 0 to the run's, others to a copy), and the processes beside it."""
    with contextlib.ExitStack() as stack:
        own = path
        if not ranks.main:
            own = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
            shutil.copytree(path, own)
        crew = Crew(ranks, RunDirectory(path), session=0)
        stack.enter_context(crew.at_work())  # waits for all: nothing is written before it is copied
        yield RunDirectory(own), crew


def finish(crew: Crew) -> None:
    """Leave together: a process that ended before its last word counts as lost."""
    crew.announce(DONE)
    if crew.ranks.main:
        with contextlib.suppress(RankLost):  # everything is scored
            crew.wait_for(DONE)
