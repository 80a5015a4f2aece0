"""Conditions that a result of one file (`sa-eval fidelity`, `sa-eval speed`) rests on. Imports no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from sa_eval.records.result_folder import Result

NEARLY_FULL = 0.9  # an arm that reads so large a share of all pairs is hardly tested
NAMED = 4  # that a terminal shows; the page has all


@dataclass(frozen=True)
class Gate:
    """A condition; `status` is failed, warning or passed, `where` names what it failed for."""

    gate: str
    status: str
    text: str
    where: Sequence[str] = ()


def complete(result: Result, failures: Sequence[str]) -> Gate:
    """Whether everything that was asked for was measured."""
    if failures:
        return Gate("complete", "failed", "Some arms failed and have no numbers.", failures)
    if result.finished is None or result.interrupted:
        return Gate("complete", "warning", "The measurement was interrupted: `sa-eval resume` does what is missing.")
    return Gate("complete", "passed", "Everything that was asked for was measured.")


def lines(gates: Sequence[Gate], width: int) -> str:
    """Those that did not pass, for a terminal."""
    found = []
    for gate in gates:
        if gate.status != "passed":
            hidden = len(gate.where) - NAMED
            named = "; ".join(gate.where[:NAMED]) + (f"; and {hidden} more" if hidden > 0 else "")
            text = f"{gate.gate}: {gate.text}{f' {named}' if named else ''}"
            found.append(textwrap.fill(text, width, initial_indent="  ! ", subsequent_indent="    "))
    return "\n".join(found)
