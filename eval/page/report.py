"""report.html: one file that needs nothing but itself. Reads the run directory only, computes no statistics.

Prompts and model outputs are hostile until shown otherwise: the template escapes every string, and the page's policy
lets no script run but its own and no request leave.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from sa_eval.page import document_list, files, pictures, sections, tables
from sa_eval.page.visible import visible
from sa_eval.records.directory import RunDirectory
from sa_eval.records.types import Record
from sa_eval.results import summary
from sa_eval.results.types import Results

FILES = ("report.html", "report.css", "report.js")
STATES = (("failed", "Failed"), ("warning", "Warning"), ("passed", "Passed"))


GLOSSARY = {
    "Arm": "one way to choose which earlier tokens a token reads: a mode, its window, its options. All arms answer the "
    "same documents.",
    "Keys per query": "how many earlier tokens a token reads on average, the budget. Compare arms at one budget.",
    "Corrected interval": "every true difference that its test does not rule out, given how many were tested. Where it "
    "leaves out 0, the difference is significant.",
}


def write(directory: RunDirectory) -> None:
    """Render report.html and figures/ next to the records."""
    results, records = summary.read(directory), list(directory.records())
    documents = document_list.differing(results, records, directory.prompts())
    directory.write_text("report.html", render(results, records, documents))
    files.write(directory.path / "figures", results, records, documents)


def render(results: Results, records: list[Record], documents: list[document_list.Document]) -> str:
    """The page of a run."""
    headline = pictures.headline(results)
    return fill(
        question=f"What does sparse attention cost {results.model['name']}?",
        answer=results.answer,
        headline=sections.shown(headline) if headline else None,
        glossary=GLOSSARY,
        evidence=tables.evidence(results),
        gates=[(state, title, [gate for gate in results.gates if gate.status == state]) for state, title in STATES],
        notes=results.notes,
        failures=len(results.failures),
        facts=_facts(results),
        sections=sections.sections(results, records, documents),
    )


def fill(**content: Any) -> str:
    """The page with this content: question, answer, headline (or None), glossary, evidence (or None), gates, notes,
    failures, facts, sections."""
    sources = {name: resources.files("sa_eval.page").joinpath(name).read_text(encoding="utf-8") for name in FILES}
    environment = Environment(
        loader=DictLoader(sources),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = sources["report.js"]
    return environment.get_template("report.html").render(
        **content,
        css=Markup(sources["report.css"]),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _facts(results: Results) -> dict[str, str]:
    """What was run, in a line."""
    tasks, model, hardware = results.tasks, results.model, results.hardware
    lengths = sorted({task.length for task in tasks if task.length is not None})
    return {
        "Model": f"{model['name']}, {model['parameters'] / 1e6:,.1f} M parameters, {model['dtype']}",
        "Documents": f"{sum(task.documents for task in tasks):,} per arm, {len({task.name for task in tasks})} tasks",
        "Lengths": ", ".join(f"{length:,}" for length in lengths) or "the tasks' own",
        "Hardware": hardware.get("gpu")
        or f"{hardware['cpu']}, {hardware['threads']} thread{'s' if hardware['threads'] > 1 else ''}",
        "Started": results.started.replace("T", " ").replace("Z", " UTC"),
    }
