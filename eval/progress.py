"""What a running evaluation prints: bars with arm, task and time left, notes, and silence for noisy libraries."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

NOISY_LOGGERS = (
    "lm_eval",
    "lm-eval",
    "transformers",
    "datasets",
    "huggingface_hub",
    "httpx",
    "accelerate",
    "absl",
    "nltk",
)


class Progress:
    """Progress on stderr; `verbose` lets the libraries' own logs and bars through, `enabled=False` prints nothing."""

    def __init__(self, *, verbose: bool = False, enabled: bool = True) -> None:
        from tqdm import tqdm  # not for --help

        self.verbose, self.enabled = verbose, enabled
        self._tqdm = tqdm
        self._terminal = sys.stderr  # ours, also while libraries are kept quiet
        self._quiet = False

    def say(self, text: str) -> None:
        if self.enabled:
            self._tqdm.write(text, file=self._terminal)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        start = time.perf_counter()
        with self.quiet():
            yield
        self.say(f"{text}: {time.perf_counter() - start:.1f} s")

    @contextlib.contextmanager
    def bar(self, total: int, text: str, unit: str, done: int = 0) -> Iterator[Bar]:
        """A bar over `total`; what was `done` before counts as done, not as speed."""
        with self._tqdm(
            total=total,
            initial=done,
            desc=text,
            unit=f" {unit}",
            disable=not self.enabled,
            dynamic_ncols=True,
            file=self._terminal,
            smoothing=0.1,
            mininterval=0.5,
        ) as bar:
            yield Bar(bar)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep library logs, bars and prints away; their errors still reach us as exceptions. Nesting costs nothing."""
        if self.verbose or self._quiet:
            yield
            return
        names = [*NOISY_LOGGERS, *(name for name in logging.root.manager.loggerDict if name.startswith(NOISY_LOGGERS))]
        levels = {name: logging.getLogger(name).level for name in names}
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._quiet = True
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(_Silence()):
                yield
        finally:
            self._quiet = False
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


class Bar:
    """One tqdm bar."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar

    def describe(self, text: str, *, now: bool = False) -> None:
        self._bar.set_description_str(text, refresh=now)

    def advance(self, count: int) -> None:
        if count >= 0:
            self._bar.update(count)
        else:  # tqdm forgets its rate here; a step back is rare
            self._bar.n += count
            self._bar.refresh()


class _Silence(io.TextIOBase):
    """Swallows what libraries write to stderr."""

    def write(self, text: str) -> int:
        return len(text)
