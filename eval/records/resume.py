"""Owns what may be continued: a run whose model, code, versions, settings and documents are what its records belong to.

Whatever differs is refused with a name; nothing is overwritten. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sa_eval.records.directory import RunDirectory
from sa_eval.records.keys import Keys, differences
from sa_eval.settings.config import Settings, SettingsError, settings_from
from sa_eval.settings.settings_file import read_yaml

FREE = ("out", "threads", "device", "device_map", "tp", "speed")  # settings that decide no score
MOST = 5


def open_directory(path: str) -> tuple[RunDirectory, Settings]:
    """The directory of a run and its settings.

    Raises:
        SettingsError: there is no run.
    """
    folder = Path(path)
    if not (folder / "config.yaml").is_file():
        raise SettingsError(
            f"{path} holds no run to resume: it has no config.yaml; give the directory that `sa-eval run` printed"
        )
    return RunDirectory(folder), settings_from({**read_yaml(folder / "config.yaml"), "out": None})


def nothing_left(directory: RunDirectory, settings: Settings) -> bool:
    """Whether the run finished, nothing in it failed, and all of it is there, for these settings."""
    manifest = directory.read_json("manifest.json") if directory.has("manifest.json") else {}
    if not manifest.get("finished") or directory.log("failures") or _settings_differ(manifest, settings):
        return False
    seeds = sum(len(arm["seeds"]) for arm in manifest["arms"])
    wanted = seeds * sum(len(task["hashes"]) for task in manifest["tasks"])
    return wanted == sum("error" not in record for record in directory.records())


def check_run(directory: RunDirectory, earlier: dict[str, Any], settings: Settings, keys: Keys) -> None:
    """Refuse settings, weights, code or versions that are not the recorded ones."""
    if "keys" not in earlier:
        raise _refused(directory, ["the records have no keys: an older version made them"])
    found = _settings_differ(earlier, settings)
    found += differences(earlier["keys"], _plain(keys.parts))
    if found:
        raise _refused(directory, found)


def _settings_differ(earlier: dict[str, Any], settings: Settings) -> list[str]:
    then, now = (
        {name: value for name, value in _plain(given).items() if name not in FREE}
        for given in (earlier["settings"], settings.to_dict())
    )
    return [f"setting {text}" for text in differences(then, now)]


def check_documents(directory: RunDirectory, earlier: dict[str, Any], tasks: Sequence[Any]) -> None:
    """Refuse documents that are not the recorded ones, whatever changed them."""
    built, found = {task.key: task for task in tasks}, []
    for row in earlier["tasks"]:
        task = built.get(_key(row))
        if task is None or task.hashes == row["hashes"]:
            continue
        pairs = zip(task.hashes, row["hashes"], strict=False)
        other = sum(one != two for one, two in pairs) + abs(len(task.hashes) - len(row["hashes"]))
        found.append(f"{other} of {len(row['hashes'])} documents of {task.key} are not the recorded ones")
    if found:
        raise _refused(directory, found)


def check_records(directory: RunDirectory, keys: Keys, arms: Sequence[Any], tasks: Sequence[Any]) -> None:
    """Refuse records that something else made."""
    by_name, hashes = {arm.name: arm for arm in arms}, {task.key: task.hashes for task in tasks}
    for record in directory.records():
        arm, task, index = by_name.get(record["arm"]), record["task"], record["index"]
        if task not in hashes:  # its documents could not be built this time
            continue
        known = arm is not None and record["seed"] in arm.seeds and index < len(hashes[task])
        if not known or record.get("key") != keys.of(arm, record["seed"], task, hashes[task][index]):
            where = f"document {index} of {task} under {record['arm']}, seed {record['seed']}"
            raise _refused(directory, [f"the record of {where} belongs to another run"])


def merged_tasks(earlier: dict[str, Any] | None, tasks: Sequence[Any]) -> list[dict[str, Any]]:
    """The manifest's tasks: those built now, and earlier ones whose data cannot be had this time."""
    rows = [task.to_dict() for task in tasks]
    built = {task.key for task in tasks}
    return rows + [row for row in (earlier or {}).get("tasks", []) if _key(row) not in built]


def _key(row: dict[str, Any]) -> str:
    return row["name"] if row["length"] is None else f"{row['name']}@{row['length']}"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _refused(directory: RunDirectory, found: list[str]) -> SettingsError:
    more = f" (and {len(found) - MOST} more)" if len(found) > MOST else ""
    return SettingsError(
        f"{directory.path} cannot be continued: {'; '.join(found[:MOST])}{more}. Its records stay as they are; "
        f"`sa-eval --config {directory.path / 'config.yaml'} --out <new directory>` runs everything anew"
    )
