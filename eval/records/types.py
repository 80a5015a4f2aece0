"""What a run's files hold, as types: one dataclass per kind of line, and the manifest.

JSON becomes these objects in `read`, and nothing else reads a run's JSON; they become JSON in `plain`. Files of version
1 (the first release) read as well: a field that they lack has a default here. Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

VERSION = 2  # of the files of a run; a manifest says it as `schema`
FULL = "full"  # the arm of the model's own attention, in every run

Json = Any  # a value as JSON holds it; recursive types cost more than they tell
Facts = dict[str, Json]  # named facts that are shown and compared, never computed with
Kind = TypeVar("Kind")
Place = tuple[str, int, str, int]  # arm, seed, task, index


@dataclass(frozen=True)
class Record:
    """One document under one arm and seed.

    Attributes:
        task: `name@length`, or the name where the task brings its own lengths (see `task_key`).
        score: share of a right answer, 0 to 1; 0 for a document that failed.
        output: the generated text, or one log-likelihood per choice.
        expected: the right answer as text.
        depth: where the asked fact lies in the prompt, 0 (start) to 1.
        key: hash of everything that decides the score (keys.py); None in files of before version 1's keys.
        cut: whether the limit of new tokens ended the answer (of several: one of them), and neither an end of text nor
            a stop string did; None where nothing was generated, and in files that do not say it.
        error: why there is no answer.
    """

    arm: str
    seed: int
    task: str
    index: int
    hash: str
    score: float
    name: str = ""
    length: int | None = None
    metric: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    output: Json = None
    expected: str | None = None
    depth: float | None = None
    prompt_tokens: int | None = None
    key: str | None = None
    error: str | None = None
    cut: bool | None = None

    @property
    def place(self) -> Place:
        """Which document under which arm and seed this is about: a run holds one answer to each."""
        return self.arm, self.seed, self.task, self.index


@dataclass(frozen=True)
class Prompt:
    """What a document asks, whatever the arm: both ends of its longest prompt, and the answer that is expected."""

    task: str
    index: int
    hash: str
    prompt_tokens: int
    depth: float | None
    expected: str
    head: str
    tail: str


@dataclass(frozen=True)
class MeasuredBudget:
    """What a prefill costs, measured over the prompts that were read.

    Attributes:
        keys_per_query: visible (query, key) pairs over queries.
        density: visible pairs over those of full causal attention.
        router_cost_per_query: work spent on choosing keys, in scores per query.
        exact: False where the pairs depend on the content, and are estimated.
        off_target: the largest relative distance to the keys per query that were asked for.
    """

    keys_per_query: float
    density: float
    router_cost_per_query: float
    exact: bool
    off_target: float


@dataclass(frozen=True)
class Budget:
    """`MeasuredBudget` of one arm at one length (None: tasks with their own lengths)."""

    arm: str
    length: int | None
    keys_per_query: float
    density: float
    router_cost_per_query: float = 0.0
    exact: bool = True
    off_target: float = 0.0


@dataclass(frozen=True)
class Speed:
    """Time and memory of one arm at one length.

    Attributes:
        prefill_ms: median time to the first token of all `repeats_ms`.
        spread: (slowest - fastest) / median.
        first_ms: what the first calls after patching took.
        peak_gib: allocated beyond what was held before the call; None where it cannot be told.
        decode_tokens_per_s: all rows of the batch together; None where no tokens were generated.
        calls: what the layers did in one timed call, summed over them; None for the unpatched model.
        kernels: those that ran in it, the one that ran most first; none where nothing but full attention ran.
    """

    arm: str
    length: int | None
    prompt_tokens: int
    prefill_ms: float
    repeats_ms: list[float]
    spread: float
    first_ms: list[float]
    peak_gib: float | None = None
    decode_tokens_per_s: float | None = None
    decode_repeats: list[float] = field(default_factory=list)
    calls: dict[str, int] | None = None
    kernels: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """What the self-test of batches found for one arm: status passed, failed or not checked, in nats."""

    check: str
    arm: str
    status: str
    text: str
    worst: float | None = None
    allowed: float | None = None


@dataclass(frozen=True)
class ArmRun:
    """What an applied arm did: seconds, calls per layer (None: not patched), its description, notes."""

    arm: str
    seed: int
    seconds: float
    calls: list[dict[str, int]] | None = None
    describe: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Failure:
    """Something that went wrong; `documents` are the indices it is about; None: not about single documents."""

    arm: str | None
    seed: int | None
    task: str | None
    error: str
    session: int | None = None
    traceback: str | None = None
    documents: list[int] | None = None


@dataclass(frozen=True)
class ArmRow:
    """An arm as a file holds it (`Arm.to_dict`); `reason` says why a combination is no arm of the run."""

    name: str
    label: str
    mode: str
    window: int | float | None
    dense_tail: int
    seeds: list[int]
    kernel: str
    options: Facts
    reason: str | None = None


@dataclass(frozen=True)
class TaskRow:
    """A task at a length with its documents' hashes (`PreparedTask.row`)."""

    name: str
    length: int | None
    family: str
    output: str
    hashes: list[str]
    phase: str = ""
    num_fewshot: int = 0
    pool: str | None = None
    documents: int = 0
    median_prompt_tokens: int = 0

    @property
    def key(self) -> str:
        return task_key(self.name, self.length)


@dataclass(frozen=True)
class SessionRow:
    """One start of a run: `sa-eval run` is the first, every `sa-eval resume` a further one."""

    started: str
    processes: int
    hardware: Facts


@dataclass(frozen=True)
class Merged:
    """Of a run that was put together from several: what each brought, and what they differ in."""

    runs: list[Facts]
    differences: list[str]


@dataclass(frozen=True)
class Version:
    """Which version of these types a manifest was written with: read before anything else of it."""

    schema: int = 1


@dataclass(frozen=True)
class Manifest:
    """Everything about a run but its answers. `settings` are plain values, as `Settings.to_dict` gives them."""

    started: str
    settings: Facts
    model: Facts
    versions: dict[str, str]
    hardware: Facts
    arms: list[ArmRow]
    tasks: list[TaskRow]
    schema: int = 1
    left_out: list[ArmRow] = field(default_factory=list)
    keys: Facts | None = None
    sessions: list[SessionRow] = field(default_factory=list)
    finished: str | None = None
    merged: Merged | None = None


def task_key(name: str, length: int | None) -> str:
    """How a task at a length is called everywhere; None is a task with its own lengths."""
    return name if length is None else f"{name}@{length}"


def plain(row: Any) -> dict[str, Json]:
    """A dataclass as JSON holds it."""
    return asdict(row)


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read(kind: type[Kind], text: str | bytes) -> Kind:
    """The object that a JSON text holds; fields that nobody knows are passed over.

    Raises:
        ValueError: in one line: what is missing, or of another type.
    """
    try:
        return cast(Kind, _adapter(kind).validate_json(text, strict=True))
    except ValidationError as error:
        whole = _whole_characters(text) if error.errors()[0]["type"] == "json_invalid" else None
        if whole is not None and whole != text:
            return read(kind, whole)
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise ValueError(f"it has no {where!r}") from error
        raise ValueError(f"{where + ': ' if where else ''}{first['msg'][0].lower()}{first['msg'][1:]}") from error


def _whole_characters(text: str | bytes) -> bytes | None:
    """The same JSON without halves of surrogate pairs, which Python writes and no strict reader takes."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")
    except ValueError:
        return None
