"""What may be continued: a run whose model, code, versions, settings and documents are what its records belong to.

Whatever differs is refused with a name; nothing is overwritten. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sa_eval.errors import UserError
from sa_eval.records.directory import MANIFEST, RunDirectory
from sa_eval.records.jsonl import StorageError
from sa_eval.records.keys import Keys
from sa_eval.records.opening import THEN_AND_NOW, differences
from sa_eval.records.types import Json, Manifest, TaskRow
from sa_eval.settings.arm import Arm
from sa_eval.settings.config import Settings, settings_from
from sa_eval.settings.settings_file import read_yaml

FREE = ("out", "threads", "device", "device_map", "tp", "speed")  # settings that decide no score
MOST = 5


def open_directory(path: str) -> tuple[RunDirectory, Settings]:
    """The directory of a run and its settings.

    Raises:
        StorageError: there is no run.
    """
    folder = Path(path)
    if not (folder / "config.yaml").is_file():
        raise StorageError(
            f"{path} holds no run to resume: it has no config.yaml; give the directory that `sa-eval run` printed"
        )
    return RunDirectory(folder), settings_from({**read_yaml(folder / "config.yaml"), "out": None})


def nothing_left(directory: RunDirectory, settings: Settings) -> bool:
    """Whether the run finished, nothing in it failed, and all of it is there, for these settings."""
    if not directory.has(MANIFEST):
        return False
    manifest = directory.manifest()
    if not manifest.finished or directory.failures() or _settings_differ(manifest, settings):
        return False
    seeds = sum(len(arm.seeds) for arm in manifest.arms)
    wanted = seeds * sum(len(task.hashes) for task in manifest.tasks)
    return wanted == sum(record.error is None for record in directory.records())


def check_run(directory: RunDirectory, earlier: Manifest, settings: Settings, keys: Keys) -> None:
    """Refuse settings, weights, code or versions that are not the recorded ones."""
    if earlier.keys is None:
        raise _refused(directory, ["the records have no keys: an older version made them"])
    found = _settings_differ(earlier, settings)
    found += differences(earlier.keys, _plain(keys.parts), words=THEN_AND_NOW)
    if found:
        raise _refused(directory, found)


def _settings_differ(earlier: Manifest, settings: Settings) -> list[str]:
    then, now = (
        {name: value for name, value in _plain(given).items() if name not in FREE}
        for given in (earlier.settings, settings.to_dict())
    )
    return [f"setting {text}" for text in differences(then, now, words=THEN_AND_NOW)]


def check_documents(directory: RunDirectory, earlier: Manifest, tasks: Sequence[TaskRow]) -> None:
    """Refuse documents that are not the recorded ones, whatever changed them."""
    built, found = {task.key: task.hashes for task in tasks}, []
    for row in earlier.tasks:
        hashes = built.get(row.key, row.hashes)
        if hashes == row.hashes:
            continue
        pairs = zip(hashes, row.hashes, strict=False)
        other = sum(one != two for one, two in pairs) + abs(len(hashes) - len(row.hashes))
        found.append(f"{other} of {len(row.hashes)} documents of {row.key} are not the recorded ones")
    if found:
        raise _refused(directory, found)


def check_records(directory: RunDirectory, keys: Keys, arms: Sequence[Arm], tasks: Sequence[TaskRow]) -> None:
    """Refuse records that something else made."""
    by_name, hashes = {arm.name: arm for arm in arms}, {task.key: task.hashes for task in tasks}
    for record in directory.records():
        arm, task, index = by_name.get(record.arm), record.task, record.index
        if task not in hashes:  # its documents could not be built this time
            continue
        known = arm if arm is not None and record.seed in arm.seeds and index < len(hashes[task]) else None
        if known is None or record.key != keys.of(known, record.seed, task, hashes[task][index]):
            what = f"document {index} of {task} under {record.arm}, seed {record.seed}"
            raise _refused(directory, [f"the record of {what} belongs to another run"])


def merged_tasks(earlier: Manifest | None, tasks: Sequence[TaskRow]) -> list[TaskRow]:
    """The manifest's tasks: those built now, and earlier ones whose data cannot be had this time."""
    built = {task.key for task in tasks}
    return [*tasks, *(row for row in (earlier.tasks if earlier else ()) if row.key not in built)]


def _plain(value: Json) -> Json:
    return json.loads(json.dumps(value, default=str))


def _refused(directory: RunDirectory, found: list[str]) -> UserError:
    more = f" (and {len(found) - MOST} more)" if len(found) > MOST else ""
    return UserError(
        f"{directory.path} cannot be continued: {'; '.join(found[:MOST])}{more}. Its records stay as they are; "
        f"`sa-eval --config {directory.path / 'config.yaml'} --out <new directory>` runs everything anew"
    )
