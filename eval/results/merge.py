"""Owns putting arms that were spread over several runs together into one run directory. Reads files only.

What decides a score has to be the same in all of them: model, code, the libraries that compute, dtype, kind of device
(`keys` in the manifest, see keys.py) and every document (hashes). Other libraries, machines and batch sizes may differ;
the merged run's gates say so. An arm in two runs is an error, unless every record both have carries one key: then the
first run's counts, as full's does when each run brought its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sa_eval.records.directory import RunDirectory
from sa_eval.records.opening import differences
from sa_eval.records.types import VERSION, ArmRow, Manifest, Merged, Record, Speed, plain
from sa_eval.records.views import SAME, last
from sa_eval.results.scores import collect, task_key
from sa_eval.settings.values import SettingsError

Row = dict[str, Any]
Run = tuple[RunDirectory, Manifest]
MOST = 5
NOT_THE_MACHINE = ("threads", "device")  # of a manifest's hardware


def merge(runs: Sequence[Run], out: str) -> RunDirectory:
    """A new directory with the arms of all runs; nothing is written before everything is checked.

    Raises:
        SettingsError: what differs, or which arm is there twice.
    """
    first = runs[0]
    for run in runs[1:]:
        _check_alike(first, run)
    arms = _arms(runs)
    records, disagreeing = _records(runs)
    notes = [text for run in runs[1:] for text in _unimportant(first, run)] + disagreeing
    for directory, manifest in runs:
        collect(directory, manifest)  # documents are what the manifest says
    merged = RunDirectory.create(out, first[1]["model"]["name"])
    for rows in records.values():
        merged.append_records(rows)
    _merge_logs(runs, merged)
    merged.write_manifest(_manifest(runs, arms, notes))
    return merged


def _manifest(runs: Sequence[Run], arms: list[ArmRow], notes: list[str]) -> Manifest:
    manifests = [manifest for _, manifest in runs]
    parts = ("started", "finished", "settings", "versions", "hardware")
    about = [
        {"directory": directory.path.name, **{name: manifest.get(name) for name in parts}}
        for directory, manifest in runs
    ]
    finished = [manifest.get("finished") for manifest in manifests]
    return replace(
        manifests[0],
        schema=VERSION,
        left_out=[row for one in manifests for row in one.left_out],
        sessions=[row for one in manifests for row in one.sessions],
        started=min(one.started for one in manifests),
        arms=arms,
        merged=Merged(about, notes),
        finished=max(text for text in finished if text) if all(finished) else None,
    )


def _check_alike(first: Run, other: Run) -> None:
    (one, here), (two, there) = first, other
    if None in (here.keys, there.keys):
        old = one if here.keys is None else two
        raise SettingsError(f"{old.path} cannot be merged: its records have no keys, an older version made them")
    found = differences(here["keys"], there["keys"])
    tasks = [{task_key(task): task["hashes"] for task in manifest["tasks"]} for manifest in (here, there)]
    found += [f"task {name} is in one of them only" for name in tasks[0].keys() ^ tasks[1].keys()]
    found += [
        f"the documents of {name}" for name in tasks[0].keys() & tasks[1].keys() if tasks[0][name] != tasks[1][name]
    ]
    if found:
        more = f" (and {len(found) - MOST} more)" if len(found) > MOST else ""
        raise SettingsError(
            f"{one.path} and {two.path} cannot be merged, they differ in {'; '.join(sorted(found)[:MOST])}{more}: "
            "`sa-eval compare` sets runs side by side that are not alike"
        )


def _unimportant(first: Run, other: Run) -> list[str]:
    """What may differ without changing a score by more than rounding, but has to be told."""
    (_, here), (directory, there) = first, other
    found = [
        *differences(_machine(here), _machine(there), "hardware"),
        *differences(here["versions"], there["versions"], "versions"),
        *differences(here["settings"].get("batch_size"), there["settings"].get("batch_size"), "batch_size"),
    ]
    return [f"{directory.path.name}: {text}" for text in found]


def _machine(manifest: Manifest) -> Row:
    return {name: value for name, value in manifest["hardware"].items() if name not in NOT_THE_MACHINE}


def _arms(runs: Sequence[Run]) -> list[ArmRow]:
    """Every arm once, with the seeds of all runs; full first."""
    found: dict[str, ArmRow] = {}
    for directory, manifest in runs:
        for arm in manifest["arms"]:
            known = found.setdefault(arm["name"], arm)
            same = differences(*({**plain(one), "seeds": None} for one in (known, arm)))
            if same:
                raise SettingsError(
                    f"{directory.path} has another arm called {arm['name']} than an earlier run ({'; '.join(same)}): "
                    "two arms of one name cannot be merged"
                )
            found[arm.name] = replace(known, seeds=sorted({*known.seeds, *arm.seeds}))
    return sorted(found.values(), key=lambda arm: arm["mode"] != "full")


def _records(runs: Sequence[Run]) -> tuple[dict[tuple[str, int], list[Record]], list[str]]:
    """Records by arm and seed, each place once; and where equal keys have unequal scores."""
    found: dict[Any, Record] = {}
    unequal: dict[tuple[str, str], int] = defaultdict(int)
    for directory, _ in runs:
        for record in directory.records():
            place = record.place
            known = found.setdefault(place, record)
            if known is record:
                continue
            if record.get("key") is None or known.get("key") != record["key"]:
                raise SettingsError(
                    f"{directory.path} holds {record['arm']} (seed {record['seed']}) again, made under other "
                    "conditions than in an earlier run: leave one of the two out"
                )
            if "error" in known and "error" not in record:
                found[place] = record
            elif known["score"] != record["score"] and "error" not in record:
                unequal[directory.path.name, record["arm"]] += 1
    grouped: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in found.values():
        grouped[record["arm"], record["seed"]].append(record)
    return grouped, [
        f"{name}: {count} document(s) of {arm} scored otherwise than in an earlier run, whose scores count"
        for (name, arm), count in unequal.items()
    ]


def _merge_logs(runs: Sequence[Run], merged: RunDirectory) -> None:
    """Rows about one thing once, from the first run that has them; latencies from one kind of machine only."""
    for kind, keys in SAME.items():
        rows: dict[Any, Any] = {}
        for directory, manifest in runs:
            if kind is not Speed or _machine(manifest) == _machine(runs[0][1]):
                for row in last(directory.written(kind)):
                    rows.setdefault(tuple(row.get(key) for key in keys), row)
        merged.append(*rows.values())
    about_arms: dict[Any, Row] = {}
    for directory, _ in runs:
        for row in directory.arm_runs():
            about_arms.setdefault((row["arm"], row["seed"]), row)
        merged.append(*(replace(row, session=None) for row in directory.failures()))  # sessions are counted anew
    merged.append(*about_arms.values())
