"""The page of a result that is no run (`sa-eval fidelity`, `sa-eval speed`), on the run's template and parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sa_eval.page import report, svg
from sa_eval.page.content import Pre, Section, Table, columns, rows_of, text, words
from sa_eval.page.result_plots import Picture
from sa_eval.records.directory import RunDirectory
from sa_eval.records.result_folder import Result
from sa_eval.results.result_gates import Gate


@dataclass(frozen=True)
class Page:
    """What a page says, in its order; `pictures` are also saved as files."""

    question: str
    answer: Sequence[str]
    gates: Sequence[Gate]
    notes: Sequence[str]
    facts: dict[str, str]
    sections: Sequence[Section]
    pictures: Sequence[Picture] = field(default_factory=tuple)


def write(directory: RunDirectory, page: Page) -> None:
    """report.html, and the pictures as figures/<name>.png and .svg."""
    page_text = report.fill(
        question=page.question,
        answer=page.answer,
        headline=None,
        glossary={},
        evidence=None,
        gates=[(state, title, [gate for gate in page.gates if gate.status == state]) for state, title in report.STATES],
        notes=page.notes,
        failures=0,  # the gate `complete` says them
        facts=page.facts,
        sections=page.sections,
    )
    directory.write_text("report.html", page_text)
    folder = directory.path / "figures"
    folder.mkdir(exist_ok=True)
    for picture in page.pictures:
        for kind in ("svg", "png"):
            (folder / f"{picture.name}.{kind}").write_bytes(svg.save(picture.alone(), kind))


def about(result: Result) -> dict[str, str]:
    """Model, machine and time, in a line."""
    model, hardware = result.model, result.hardware
    return {
        "Model": f"{model['name']}, {model['parameters'] / 1e6:,.1f} M parameters, {model['dtype']}",
        "Hardware": result.machine,
        "System": hardware["system"],
        "Started": result.started.replace("T", " ").replace("Z", " UTC"),
    }


def setup(result: Result, command: str, parts: Sequence[Any] = ()) -> Section:
    """What was asked, and with what it was measured."""
    settings = "\n".join(f"{name}: {json.dumps(value)}" for name, value in result.settings.items() if name != "out")
    tables = [facts("Model", result.model), facts("Versions", result.versions), facts("Hardware", result.hardware)]
    intro = f"What `{command}` was asked for, and what computed the numbers."
    return Section("setup", "Set-up", intro, (Pre("Effective settings", settings), *parts, *tables))


def facts(caption: str, found: Mapping[str, object]) -> Table:
    """Names and values, nested ones spelled out."""
    rows = [[words(name), words(_plain(value))] for name, value in found.items()]
    return Table(caption, columns("name", text("value")), rows_of(rows), sortable=False)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)
