"""Owns one model over several processes (tensor parallel): how it is split, and how the processes of a run stay alike.

Every process asks the same documents in the same order, because each forward needs all of them. So each goes the way
of a run alone; only the main rank's is the run, the others work in folders of their own that nobody keeps. Imports
torch, transformers and accelerate only inside functions.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def plan(name: str, config: dict[str, Any]) -> Any:
    """How transformers splits the model: by the model's own plan, over all processes.

    Args:
        config: what config.json of the model says.

    Raises:
        SettingsError: heads that cannot be shared out evenly.
    """
    from torch import distributed
    from transformers.distributed import DistributedConfig

    world = distributed.get_world_size()
    text = config.get("text_config", config)
    heads = text.get("num_key_value_heads") or text.get("num_attention_heads")
    if heads is not None and heads % world:
        raise SettingsError(
            f"the model {name} has {heads} key heads, which {world} processes cannot share evenly: launch a number of "
            f"processes that divides {heads}"
        )
    return DistributedConfig(tp_plan="auto")


@contextlib.contextmanager
def place_of(path: Path, ranks: Ranks) -> Iterator[tuple[RunDirectory, Crew]]:
    """Where this process works, and with whom: the main rank in the run's directory, others in a copy of it."""
    with contextlib.ExitStack() as stack:
        place = path
        if not ranks.main:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
            shutil.copytree(path, place)
        crew = Crew(ranks, RunDirectory(path), session=0)
        stack.enter_context(crew.aboard())  # waits for all: nothing is written before it is copied
        yield RunDirectory(place), crew


def finish(crew: Crew) -> None:
    """Leave together: a process that ended before its last word counts as lost."""
    crew.tell(DONE)
    if crew.ranks.main:
        with contextlib.suppress(RankLost):  # everything is scored
            crew.hear(DONE)
