"""Arms that were spread over several runs, put together into one run directory. Reads files only.

What decides a score has to be the same in all of them: model, code, the libraries that compute, dtype, kind of device
(`keys` in the manifest, see keys.py) and every document (hashes). Other libraries, machines and batch sizes may differ;
the merged run's gates say so. An arm in two runs is an error, unless every record both have carries one key: then the
first run's counts, as full's does when each run brought its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sa_eval.records.directory import RunDirectory
from sa_eval.records.opening import differences
from sa_eval.records.types import ArmRow, ArmRun, Facts, Manifest, Merged, Record, plain
from sa_eval.records.views import SAME, Measured
from sa_eval.results.scores import collect
from sa_eval.settings.values import SettingsError

Run = tuple[RunDirectory, Manifest]
MOST = 5
NOT_THE_MACHINE = ("threads", "device")  # of a manifest's hardware
ABOUT = ("started", "finished", "settings", "versions", "hardware")  # what is kept of every run


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
    merged = RunDirectory.create(out, first[1].model["name"])
    merged.append_records(records)
    _merge_logs(runs, merged)
    merged.write_manifest(_manifest(runs, arms, notes))
    return merged


def _manifest(runs: Sequence[Run], arms: list[ArmRow], notes: list[str]) -> Manifest:
    manifests = [manifest for _, manifest in runs]
    finished = [manifest.finished for manifest in manifests if manifest.finished]
    about = [
        {"directory": directory.path.name, **{name: getattr(manifest, name) for name in ABOUT}}
        for directory, manifest in runs
    ]
    return replace(
        manifests[0],
        started=min(manifest.started for manifest in manifests),
        finished=max(finished) if len(finished) == len(manifests) else None,
        arms=arms,
        left_out=[row for manifest in manifests for row in manifest.left_out],
        sessions=[row for manifest in manifests for row in manifest.sessions],
        merged=Merged(about, notes),
    )


def _check_alike(first: Run, other: Run) -> None:
    (one, here), (two, there) = first, other
    if here.keys is None or there.keys is None:
        old = one if here.keys is None else two
        raise SettingsError(f"{old.path} cannot be merged: its records have no keys, an older version made them")
    found = differences(here.keys, there.keys)
    tasks = [{task.key: task.hashes for task in manifest.tasks} for manifest in (here, there)]
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
    """What may differ without changing a score by more than rounding, but has to be said."""
    (_, here), (directory, there) = first, other
    found = [
        *differences(_machine(here), _machine(there), "hardware"),
        *differences(here.versions, there.versions, "versions"),
        *differences(here.settings.get("batch_size"), there.settings.get("batch_size"), "batch_size"),
    ]
    return [f"{directory.path.name}: {text}" for text in found]


def _machine(manifest: Manifest) -> Facts:
    return {name: value for name, value in manifest.hardware.items() if name not in NOT_THE_MACHINE}


def _arms(runs: Sequence[Run]) -> list[ArmRow]:
    """Every arm once, with the seeds of all runs; full first."""
    found: dict[str, ArmRow] = {}
    for directory, manifest in runs:
        for arm in manifest.arms:
            known = found.setdefault(arm.name, arm)
            same = differences(plain(replace(known, seeds=[])), plain(replace(arm, seeds=[])))
            if same:
                raise SettingsError(
                    f"{directory.path} has another arm called {arm.name} than an earlier run ({'; '.join(same)}): "
                    "two arms of one name cannot be merged"
                )
            found[arm.name] = replace(known, seeds=sorted({*known.seeds, *arm.seeds}))
    return sorted(found.values(), key=lambda arm: arm.mode != "full")


def _records(runs: Sequence[Run]) -> tuple[list[Record], list[str]]:
    """One record per document, arm and seed, ordered by arm and seed; and where equal keys have unequal scores."""
    found: dict[Any, Record] = {}
    unequal: dict[tuple[str, str], int] = defaultdict(int)
    for directory, _ in runs:
        for record in directory.records():
            known = found.setdefault(record.place, record)
            if known is record:
                continue
            if record.key is None or known.key != record.key:
                raise SettingsError(
                    f"{directory.path} holds {record.arm} (seed {record.seed}) again, made under other "
                    "conditions than in an earlier run: leave one of the two out"
                )
            if known.error is not None and record.error is None:
                found[record.place] = record
            elif known.score != record.score and record.error is None:
                unequal[directory.path.name, record.arm] += 1
    return sorted(found.values(), key=lambda record: (record.arm, record.seed)), [
        f"{name}: {count} document(s) of {arm} scored otherwise than in an earlier run, whose scores count"
        for (name, arm), count in unequal.items()
    ]


def _merge_logs(runs: Sequence[Run], merged: RunDirectory) -> None:
    """Rows about one thing once, from the first run that has them; latencies from one kind of machine only."""
    here = [run for run, manifest in runs if _machine(manifest) == _machine(runs[0][1])]
    everywhere = [run for run, _ in runs]
    merged.append(*_first(row for run in everywhere for row in run.budgets()))
    merged.append(*_first(row for run in here for row in run.speed()))
    merged.append(*_first(row for run in everywhere for row in run.checks()))
    merged.append(*_first(row for run in everywhere for row in run.prompts()))
    about_arms: dict[tuple[str, int], ArmRun] = {}
    for run in everywhere:
        for row in run.arm_runs():
            about_arms.setdefault((row.arm, row.seed), row)
        merged.append(*(replace(row, session=None) for row in run.failures()))  # sessions are counted anew
    merged.append(*about_arms.values())


def _first(rows: Iterable[Measured]) -> list[Measured]:
    found: dict[tuple[Any, ...], Measured] = {}
    for row in rows:
        found.setdefault(tuple(getattr(row, name) for name in SAME[type(row)]), row)
    return list(found.values())
