"""An error as text: the exception itself holds frames, and they hold tensors."""

from __future__ import annotations

import traceback
from dataclasses import dataclass


@dataclass(frozen=True)
class Trouble:
    """What went wrong; without a traceback where no exception was raised."""

    message: str
    traceback: str | None = None


@dataclass(frozen=True)
class DocumentsFailed:
    """One error and the indices of the documents it was raised for."""

    trouble: Trouble
    documents: list[int]


def trouble_of(error: BaseException) -> Trouble:
    return Trouble(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))
