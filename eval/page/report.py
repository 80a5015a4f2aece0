"""Owns report.html: one file that needs nothing but itself. Reads the run directory only, computes no statistics.

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

from sa_eval.page import document_list, figures, sections
from sa_eval.page.visible import visible
from sa_eval.records.directory import RunDirectory

FILES = ("report.html", "report.css", "report.js")
STATES = (("failed", "Failed"), ("warning", "Warning"), ("passed", "Passed"))


def write(directory: RunDirectory) -> None:
    """Render report.html and figures/ next to the records."""
    results, records = directory.read_json("results.json"), list(directory.records())
    documents = document_list.differing(results, records, directory.prompts())
    directory.write_text("report.html", render(results, records, documents))
    figures.write(directory.path / "figures", results, records, documents)


def render(results: dict[str, Any], records: list[dict[str, Any]], documents: list[document_list.Document]) -> str:
    return fill(
        question=f"What does sparse attention cost {results['model']['name']}?",
        answer=results["answer"],
        gates=[(state, title, [g for g in results["gates"] if g["status"] == state]) for state, title in STATES],
        notes=results["notes"],
        failures=len(results["failures"]),
        facts=_facts(results),
        sections=sections.sections(results, records, documents),
    )


def fill(**content: Any) -> str:
    """The page with this content: question, answer, gates, notes, failures, facts, sections."""
    files = {name: resources.files("sa_eval.page").joinpath(name).read_text(encoding="utf-8") for name in FILES}
    environment = Environment(
        loader=DictLoader(files),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = files["report.js"]
    return environment.get_template("report.html").render(
        **content,
        css=Markup(files["report.css"]),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _facts(results: dict[str, Any]) -> dict[str, str]:
    """What was run, in a line."""
    tasks, model, hardware = results["tasks"], results["model"], results["hardware"]
    lengths = sorted({task["length"] for task in tasks if task["length"] is not None})
    return {
        "Model": f"{model['name']}, {model['parameters'] / 1e6:,.1f} M parameters, {model['dtype']}",
        "Documents": f"{sum(task['documents'] for task in tasks):,} per arm, "
        f"{len({task['name'] for task in tasks})} tasks",
        "Lengths": ", ".join(f"{length:,}" for length in lengths) or "the tasks' own",
        "Hardware": hardware.get("gpu")
        or f"{hardware['cpu']}, {hardware['threads']} thread{'s' if hardware['threads'] > 1 else ''}",
        "Started": results["started"].replace("T", " ").replace("Z", " UTC"),
    }
