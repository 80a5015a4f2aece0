"""Owns report.html: one file, no network, no script. Reads the run directory only (results.json and records)."""

from __future__ import annotations

import json
from collections import defaultdict
from html import escape
from importlib import resources
from string import Template
from typing import Any

from sa_eval import charts, report_tables
from sa_eval.store import RunDirectory
from sa_eval.summary import by_arm_and_length


def write(directory: RunDirectory) -> None:
    """Render report.html next to the records."""
    directory.write_text("report.html", render(directory.read_json("results.json"), list(directory.records())))


def render(results: dict[str, Any], records: list[dict[str, Any]]) -> str:
    template = Template(resources.files("sa_eval").joinpath("report.html").read_text(encoding="utf-8"))
    title = f"Attention variants on {results['model']['name']}"
    sections = [
        _lead(title, results),
        _charts(results),
        report_tables.accuracy(results),
        report_tables.tasks(results),
        report_tables.comparisons(results),
        report_tables.budgets(results),
        report_tables.depths(results, records),
        report_tables.failures(results),
        _setup(results),
    ]
    return template.substitute(title=escape(title), body="\n".join(section for section in sections if section))


def _lead(title: str, results: dict[str, Any]) -> str:
    first, *more = results["answer"]
    tasks = results["tasks"]
    documents = sum(task["documents"] for task in tasks)
    lengths = sorted({task["length"] for task in tasks if task["length"] is not None})
    hardware = results["hardware"]
    model = results["model"]
    facts = {
        "model": f"{model['name']}, {model['parameters'] / 1e6:,.1f} M parameters, {model['dtype']}",
        "documents": f"{documents} per arm, {len({task['name'] for task in tasks})} tasks",
        "lengths": ", ".join(str(length) for length in lengths) or "the tasks' own",
        "hardware": hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} threads",
        "run": results["started"].replace("T", " ").replace("Z", " UTC"),
    }
    chips = "".join(f"<span>{name} <b>{escape(str(value))}</b></span>" for name, value in facts.items())
    trouble = (
        '<div class="bad">This run has failures: see <a href="#failures">below</a>. Failed documents count as wrong.'
        "</div>"
        if results["failures"]
        else ""
    )
    rest = "".join(f'<p class="more">{escape(sentence)}</p>' for sentence in more)
    if len(more) > 3:
        rest = f"<details><summary>The same at {len(more)} more budgets</summary>{rest}</details>"
    notes = "".join(f"<li>{escape(note)}</li>" for note in results["notes"])
    return (
        f'<h1>{escape(title)}</h1><p class="answer">{escape(first)}</p>{rest}{trouble}'
        f'<div class="facts">{chips}</div><h2>Read this first</h2><ul class="notes">{notes}</ul>'
    )


def _charts(results: dict[str, Any]) -> str:
    """Accuracy against the measured budget: a row of panels per length and tail, one panel per family."""
    if not results["cells"]:
        return ""
    budgets = by_arm_and_length(results["budgets"])
    arms = {arm["name"]: arm for arm in results["arms"]}
    cells: dict[Any, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for cell in results["cells"]:
        if cell["length"] != "all" and cell["scope"] != "task" and (cell["arm"], cell["length"]) in budgets:
            cells[cell["length"]][cell["name"]].append(cell)
    keys = [row["keys_per_query"] for row in results["budgets"] if row["arm"] != "full"]
    if not keys:
        return ""
    x_range = (min(keys) * 0.9, max(max(keys) * 1.1, min(keys) * 2))
    labels = list(dict.fromkeys(arm["label"] for arm in results["arms"] if arm["mode"] != "full"))
    legend = "".join(f"<span>{charts.legend_mark(label)}{escape(label)}</span>" for label in labels)
    parts = [
        '<h2>Accuracy against measured budget</h2><p class="soft">Share of right answers in %, with 95 % intervals. '
        "Variants at one window lie at the same budget; they are set apart a little to be told apart.</p>"
        f'<div class="legend">{legend}<span><i class="dash"></i>full attention and its interval</span></div>'
    ]
    tails = sorted({arm["dense_tail"] for arm in results["arms"]})
    for length, by_name in cells.items():
        for tail in tails:
            heading = "tasks with their own lengths" if length is None else f"{length} tokens"
            heading += f", last {tail} prompt queries dense" if tail else ", no dense tail" if len(tails) > 1 else ""
            panels = "".join(
                charts.panel(name, *_points(found, arms, budgets, tail), x_range) for name, found in by_name.items()
            )
            parts.append(f'<h3>{escape(heading)}</h3><div class="panels">{panels}</div>')
    return "".join(parts)


def _points(
    cells: list[dict[str, Any]], arms: dict[str, Any], budgets: dict[Any, Any], tail: int
) -> tuple[list[charts.Point], charts.Point | None]:
    points, full = [], None
    for cell in cells:
        arm = arms[cell["arm"]]
        point = charts.Point(
            arm["label"],
            cell["arm"],
            budgets[cell["arm"], cell["length"]]["keys_per_query"],
            cell["accuracy"],
            cell["low"],
            cell["high"],
        )
        if arm["mode"] == "full":
            full = point
        elif arm["dense_tail"] == tail:
            points.append(point)
    return points, full


def _setup(results: dict[str, Any]) -> str:
    """Everything needed to run it again and to check that it was the same thing."""
    settings = "\n".join(f"{key}: {json.dumps(value)}" for key, value in results["settings"].items() if key != "out")
    about = {"model": results["model"], "versions": results["versions"], "hardware": results["hardware"]}
    described = "\n".join(
        f"{run['arm']} seed {run['seed']} ({run['seconds']:.1f} s): {run['describe']}" for run in results["arm_runs"]
    )
    return (
        '<h2>Set-up</h2><p class="soft">Save the settings as a YAML file and run <code>sa-eval --config FILE</code> to '
        "repeat this run. Hashes of all documents are in results.json; every arm was checked against them.</p>"
        f"<h3>Effective settings</h3><pre>{escape(settings)}</pre>"
        f"<h3>Model, versions, hardware</h3><pre>{escape(json.dumps(about, indent=1, ensure_ascii=False))}</pre>"
        f"<details><summary>What ran in each arm</summary><pre>{escape(described)}</pre></details>"
    )
