"""Owns what a running evaluation prints: bars with arm, task and time left, notes, and silence for noisy libraries."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

NOISY_LOGGERS = ("lm_eval", "lm-eval", "transformers", "datasets", "huggingface_hub", "httpx", "accelerate", "absl", "nltk")


class Progress:
    """Progress on stderr; `verbose` lets the libraries' own logs and bars through, `enabled=False` prints nothing."""

    def __init__(self, *, verbose: bool = False, enabled: bool = True) -> None:
        self.verbose, self.enabled = verbose, enabled
        self._bar: tqdm | None = None

    def say(self, text: str) -> None:
        if self.enabled:
            tqdm.write(text, file=sys.stderr)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        start = time.perf_counter()
        with self.quiet():
            yield
        self.say(f"{text}: {time.perf_counter() - start:.1f} s")

    @contextlib.contextmanager
    def bar(self, total: int, text: str, unit: str) -> Iterator[Bar]:
        with tqdm(total=total, desc=text, unit=f" {unit}", disable=not self.enabled, dynamic_ncols=True, leave=True,
                  file=sys.stderr, smoothing=0.1) as bar:
            yield Bar(bar)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep library logs, bars and prints away; warnings and errors still reach the records through exceptions."""
        if self.verbose:
            yield
            return
        levels = {name: logging.getLogger(name).level for name in NOISY_LOGGERS}
        children = [name for name in logging.root.manager.loggerDict if name.startswith(NOISY_LOGGERS)]
        levels.update({name: logging.getLogger(name).level for name in children})
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        terminal = sys.stderr
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(_Filter(terminal)):
                yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


class Bar:
    """One tqdm bar that knows how much was done."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar
        self.done = 0

    def describe(self, text: str) -> None:
        self._bar.set_description_str(text, refresh=False)

    def advance(self, count: int) -> None:
        self.done += count
        self._bar.update(count)


class _Filter(io.TextIOBase):
    """Swallows what libraries write to stderr; our bar keeps the terminal it was opened with."""

    def __init__(self, terminal: io.TextIOBase) -> None:
        self.terminal = terminal

    def write(self, text: str) -> int:
        return len(text)

    def isatty(self) -> bool:
        return False
