"""Two runs side by side: arms of one against arms of the other on the same documents. Reads files only.

Documents are paired by their hash and have to be the same in both runs; models, versions and arms may differ, that may
be what is compared, and are named. Differences are B minus A, tested as in significance.py; Holm's family is
everything that one comparison shows.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, replace

from sa_eval.records.directory import RunDirectory
from sa_eval.records.opening import differences
from sa_eval.records.types import ArmRow, Json, Manifest, TaskRow, plain
from sa_eval.results import stats
from sa_eval.results.cells import Pair, corrected, task_keys
from sa_eval.results.scores import Answers, Scores, collect, scopes
from sa_eval.results.types import Difference, Family, Length, flat
from sa_eval.settings.values import SettingsError, nearest

A, B = "A", "B"
ABOUT = ("model", "versions", "hardware")
Key = tuple[str, str, frozenset[str]]


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    directory: RunDirectory
    manifest: Manifest
    scores: Scores

    @classmethod
    def of(cls, directory: RunDirectory, manifest: Manifest) -> Side:
        return cls(directory, manifest, collect(directory, manifest))

    def arm(self, name: str) -> ArmRow:
        arms = {arm.name: arm for arm in self.manifest.arms}
        if name not in arms:
            raise SettingsError(f"{self.directory.path} has no arm {name!r}: {nearest(name, list(arms))}")
        return arms[name]


@dataclass(frozen=True)
class Row:
    """An arm of B minus an arm of A, at a length and in a scope; accuracies are on the documents that both answered."""

    arm_a: str
    arm_b: str
    length: Length
    scope: str
    name: str
    documents: int
    accuracy_a: float
    accuracy_b: float
    difference: Difference


@dataclass(frozen=True)
class ScoredDocument:
    """A document that the two arms scored differently."""

    task: str
    index: int
    hash: str
    score_a: float
    score_b: float


@dataclass(frozen=True)
class Comparison:
    """Everything that is shown of two runs.

    Attributes:
        different: what their models, versions, machines and code differ in, in words.
        arms: "A's arm / B's arm" -> what the two arms differ in, where they do.
        documents: "A's arm / B's arm" -> documents with different scores: those that B lost first, the clearest first.
    """

    a: str
    b: str
    different: list[str]
    arms: dict[str, list[str]]
    family: Family
    rows: list[Row]
    documents: dict[str, list[ScoredDocument]]

    @property
    def identical(self) -> bool:
        """Whether nothing at all was found to differ."""
        return not (self.different or self.arms or any(self.documents.values()))

    def rows_of(self, pair: str) -> list[Row]:
        return [row for row in self.rows if pair_name(row.arm_a, row.arm_b) == pair]

    def plain(self) -> dict[str, Json]:
        """As --json writes it."""
        found = asdict(self)
        family, rows = found.pop("family"), found.pop("rows")
        return {**found, "tests": family["tests"], "level": family["level"], "rows": [flat(row) for row in rows]}


def pair_name(first: str, second: str) -> str:
    return f"{first} / {second}"


def compare(one: Side, other: Side, arms: tuple[str, str] | None = None) -> Comparison:
    """Everything that is shown.

    Args:
        arms: an arm of each run; None takes all arms that have one name in both.

    Raises:
        SettingsError: documents differ, an arm is unknown, or nothing is left to compare.
    """
    partners = _partners(one, other)
    names = [arms] if arms else [(arm, arm) for arm in one.scores.arms if arm in other.scores.arms]
    groups: list[_Group] = []
    documents: dict[str, list[ScoredDocument]] = {}
    different: dict[str, list[str]] = {}
    for first, second in names:
        pair = pair_name(first, second)
        scores = _joined(one, other, partners, (first, second))
        groups += _groups(scores, first, second)
        documents[pair] = _scored_differently(scores)
        mine, theirs = (plain(replace(side.arm(name), name="")) for side, name in ((one, first), (other, second)))
        different[pair] = differences(mine, theirs)
    if not groups:
        choices = [", ".join(side.scores.arms) or "none" for side in (one, other)]
        raise SettingsError(
            f"{one.directory.path} and {other.directory.path} have no arm with answers in common: name one of each "
            f"with --arm-a ({choices[0]}) and --arm-b ({choices[1]})"
        )
    found, family = corrected({group.key: group.pair for group in groups})
    about = [differences(getattr(one.manifest, name), getattr(other.manifest, name), name) for name in ABOUT]
    mine, theirs = ((side.manifest.keys or {}).get("code") for side in (one, other))
    about.append(differences(mine, theirs, "code"))
    return Comparison(
        a=str(one.directory.path),
        b=str(other.directory.path),
        different=[text for texts in about for text in texts],
        arms={pair: texts for pair, texts in different.items() if texts},
        family=family,
        rows=[group.row(found[group.key]) for group in groups],
        documents=documents,
    )


def _partners(one: Side, other: Side) -> dict[str, dict[int, int]]:
    """task -> index in B -> index in A of the same document; copies of a document are taken in order.

    Raises:
        SettingsError: a document is in one of the runs only.
    """
    here, there = ({task.key: task.hashes for task in side.manifest.tasks} for side in (one, other))
    found = [f"task {name} is in {one.directory.path} only" for name in here if name not in there]
    found += [f"task {name} is in {other.directory.path} only" for name in there if name not in here]
    partners = {}
    for name in here.keys() & there.keys():
        indices: dict[str, list[int]] = defaultdict(list)
        for index, value in enumerate(here[name]):
            indices[value].append(index)
        pairs = {index: indices[value].pop(0) for index, value in enumerate(there[name]) if indices[value]}
        alone = len(here[name]) + len(there[name]) - 2 * len(pairs)
        found += [f"{alone} document(s) of {name} are in one of them only"] if alone else []
        partners[name] = pairs
    if found:
        raise SettingsError(
            f"the runs are not about the same documents: {'; '.join(found[:5])}{' ...' if len(found) > 5 else ''}; use "
            "the same tasks, lengths, num_samples, doc_seed and tokenizer in both"
        )
    return partners


def _joined(one: Side, other: Side, partners: dict[str, dict[int, int]], arms: tuple[str, str]) -> Scores:
    """Both arms' answers together, B's documents numbered as A's."""
    answers = {}
    for task in partners:
        mine, theirs = one.scores.answers.get((task, arms[0])), other.scores.answers.get((task, arms[1]))
        if mine is not None and theirs is not None:
            numbered = {partners[task][index]: values for index, values in theirs.by_index.items()}
            answers[task, A], answers[task, B] = mine, Answers(theirs.seeds, numbered)
    return Scores([A, B], one.manifest.tasks, answers, [])


@dataclass(frozen=True)
class _Group:
    """Tasks under two arms: a row before its correction."""

    arms: tuple[str, str]
    length: Length
    scope: str
    name: str
    tasks: list[TaskRow]
    pair: Pair

    @property
    def key(self) -> Key:
        return *self.arms, task_keys(self.tasks)

    def row(self, difference: Difference) -> Row:
        documents = stats.num_documents(self.pair.strata)
        first, second = (stats.stratified_mean(self.pair.strata, side) for side in (A, B))
        return Row(*self.arms, self.length, self.scope, self.name, documents, first, second, difference)


def _groups(scores: Scores, first: str, second: str) -> list[_Group]:
    """Overall, families and tasks with all lengths together; overall at each length where there are several."""
    lengths = list(dict.fromkeys(task.length for task in scores.tasks))
    groups: list[tuple[Length, str, str, list[TaskRow]]] = [
        ("all", scope, name, tasks)
        for scope, name, tasks in scopes(scores.tasks)
        if scope != "family" or len({task.name for task in tasks}) > 1  # else the task's row says it
    ]
    if len(lengths) > 1:
        by_length = [(length, [task for task in scores.tasks if task.length == length]) for length in lengths]
        groups += [(length, "overall", "overall", tasks) for length, tasks in by_length]
    found = []
    for length, scope, name, tasks in groups:
        strata = scores.pair(tasks, B, A)
        if strata is not None:
            found.append(_Group((first, second), length, scope, name, tasks, Pair(strata, B, A)))
    return found


def _scored_differently(scores: Scores) -> list[ScoredDocument]:
    """The documents that one arm did better than the other, those that B lost first, the clearest first."""
    found = []
    for task in scores.tasks:
        mine, theirs = (scores.answers.get((task.key, side)) for side in (A, B))
        if mine is None or theirs is None:
            continue
        for index in sorted(mine.by_index.keys() & theirs.by_index.keys()):
            before, after = float(mine.by_index[index].mean()), float(theirs.by_index[index].mean())
            if before != after:
                found.append(ScoredDocument(task.key, index, task.hashes[index], before, after))
    return sorted(found, key=lambda row: row.score_b - row.score_a)


def lost(documents: list[ScoredDocument]) -> list[ScoredDocument]:
    return [row for row in documents if row.score_b < row.score_a]


def won(documents: list[ScoredDocument]) -> list[ScoredDocument]:
    return [row for row in reversed(documents) if row.score_b > row.score_a]
