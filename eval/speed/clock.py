"""The timing of prompts and generated tokens, through the model's own `generate`, arms in turns; no sa_patch.

A turn takes every arm once: it is patched, warmed up by one untimed call of the same length, timed, and restored, so
that a drifting machine hits all arms alike. Binding and restoring a patch are outside the clock, and the orders and
plans a patch keeps are there already, as in a process that goes on serving. What the first call after binding took is
told apart (`first_ms`).
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from transformers import GenerationConfig

from sa_eval.loading import models
from sa_eval.records.types import Speed
from sa_eval.speed import memory

REPEATS = 3
Clock = Callable[[], float]


class Timed(Protocol):
    """What is measured here: an arm or the floor (floor.py)."""

    @property
    def name(self) -> str: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...
    def apply(self, model: Any, seed: int) -> Any: ...


@dataclass(frozen=True)
class Work:
    """What one timed call does: the prompt in `batch_size` rows, then one token and `new_tokens` more."""

    prompt: Sequence[int]
    new_tokens: int = 0
    batch_size: int = 1
    clock: Clock = time.perf_counter

    @property
    def steps(self) -> tuple[int, int]:
        """Tokens after the first one in the warm-up and in the timed call."""
        return min(self.new_tokens, 1), self.new_tokens

    def ids(self, device: torch.device) -> torch.Tensor:
        return torch.tensor([self.prompt], device=device).expand(self.batch_size, -1).contiguous()


@dataclass(frozen=True)
class Reading:
    """One call: seconds to the first token, and from there to the last one (0.0 when there is only one)."""

    first_s: float
    decode_s: float


@dataclass
class Taken:
    """What was measured of one arm at one length so far."""

    timed: list[Reading] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    calls: dict[str, int] | None = None
    kernels: list[str] = field(default_factory=list)


def measure_prefill(
    model: Any,
    arms: Sequence[Timed],
    prompts: Mapping[Any, Sequence[int]],
    *,
    repeats: int = REPEATS,
    new_tokens: int = 0,
    batch_size: int = 1,
    clock: Clock = time.perf_counter,
    progress: Callable[[str], None] = lambda text: None,
    refused: Callable[[Any, Exception], None] = lambda arm, error: None,
    needless: Callable[[Any, Mapping[str, Taken]], bool] = lambda arm, taken: False,
) -> list[Speed]:
    """Time to first token, decoding rate and memory per arm and length.

    Args:
        prompts: length (a key of the rows) -> token ids.
        new_tokens: tokens to time after the first one; 0 times none.
        batch_size: rows that hold the same prompt.
        progress: called once per arm and turn, `repeats` times per arm and length.
        refused: gets an arm that failed, and why; it has no row then, and the others go on.
        needless: whether an arm, by what was taken of others so far at the length, is not worth a turn: it has no row.

    Returns:
        a row per arm and length, in that order within a length.
    """
    rows: list[Speed] = []
    for length, prompt in prompts.items():
        work = Work(prompt, new_tokens, batch_size, clock)
        taken = {arm.name: Taken() for arm in arms}
        for turn in range(repeats):
            for arm in arms:
                if arm.name not in taken or needless(arm, taken):
                    continue
                progress(arm.name)
                try:
                    _turn(model, arm, work, taken[arm.name], first=turn == 0)
                except Exception as error:
                    del taken[arm.name]
                    refused(arm, error)
                if arm.name not in taken:  # by now the error, and what its frames held, is gone
                    memory.release(models.input_device(model))
        rows += [_row(name, length, work, found) for name, found in taken.items() if found.timed]
    return rows


def _turn(model: Any, arm: Timed, work: Work, taken: Taken, *, first: bool) -> None:
    """One turn of one arm; where reading the peak of memory slows a call, the first turn makes one more for it."""
    device = models.input_device(model)
    patch = arm.apply(model, arm.seeds[0])
    try:
        ids = work.ids(device)
        warm_up, timed = (partial(generate, model, ids, tokens, work.clock) for tokens in work.steps)
        taken.first_ms.append(1000 * warm_up().first_s)
        before, ran, peak = _calls(patch), _ran(patch), None
        if memory.is_free(device):
            reading, peak = memory.with_peak(timed, device)
        else:
            reading = timed()
        taken.timed.append(reading)
        after = _calls(patch)
        taken.kernels = [name for name, _ in (_ran(patch) - ran).most_common()]
        taken.calls = None if before is None or after is None else dict(after - before)
        if first and not memory.is_free(device):
            _, peak = memory.with_peak(warm_up, device)
        taken.peaks += [] if peak is None else [peak]
    finally:
        if patch is not None:
            patch.restore()


def generate(model: Any, ids: torch.Tensor, new_tokens: int, clock: Clock) -> Reading:
    """The model's own greedy `generate`, told to make 1 + new_tokens tokens, with a look at the clock at each.

    A token counts when it has reached the host, which is when a user sees it; nothing of it runs on the device then.
    """
    count = 1 + new_tokens
    config = GenerationConfig(
        max_new_tokens=count, min_new_tokens=count, do_sample=False, num_beams=1, use_cache=True, pad_token_id=0
    )
    ticks = _Ticks(clock)
    with torch.inference_mode():
        memory.synchronize(ids.device)
        start = clock()
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=ticks)
    times = ticks.times[1:]  # the first tick is the prompt's
    if len(times) != count:
        raise RuntimeError(f"generate made {len(times)} tokens where {count} were asked for")
    return Reading(times[0] - start, times[-1] - times[0])


class _Ticks:
    """A streamer for `generate` that keeps when each token came, not which."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.times = clock, []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(self.clock())

    def end(self) -> None:
        pass


def _calls(patch: Any) -> Counter[str] | None:
    if patch is None or getattr(patch, "calls", None) is None:
        return None
    total: Counter[str] = Counter()
    for layer in patch.calls:
        total.update(layer)
    return total


def _ran(patch: Any) -> Counter[str]:
    return getattr(patch, "ran", None) or Counter()


def _row(name: str, length: Any, work: Work, taken: Taken) -> Speed:
    times = [1000 * reading.first_s for reading in taken.timed]
    rates = [work.batch_size * work.new_tokens / reading.decode_s for reading in taken.timed if work.new_tokens]
    median = statistics.median(times)
    return Speed(
        arm=name,
        length=length,
        prompt_tokens=len(work.prompt),
        prefill_ms=median,
        repeats_ms=times,
        spread=(max(times) - min(times)) / median,
        first_ms=taken.first_ms,
        peak_gib=max(taken.peaks) / 2**30 if taken.peaks else None,
        decode_tokens_per_s=statistics.median(rates) if rates else None,
        decode_repeats=rates,
        calls=taken.calls,
        kernels=taken.kernels,
    )
