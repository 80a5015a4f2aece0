"""The laws of the evaluation's folders: who may import whom, wherever in a file the import stands."""

import ast
from collections import defaultdict
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import sa_eval

ROOT = Path(sa_eval.__file__).parent
TOP = {"errors", "messages", "environment", "machine", "progress"}  # modules that everything may use
# folder or module -> what of sa_eval it may import, besides TOP
ALLOWED = {
    "settings": set(),
    "tasks": set(),
    "records": {"settings"},
    "budgets": {"records"},
    "loading": {"settings"},
    "estimate": {"loading", "settings"},
    "lm": {"loading", "settings"},
    "documents": {"lm", "records", "settings", "tasks"},
    "processes": {"records", "settings"},
    "results": {"records", "settings"},
    "page": {"records", "results", "settings"},
    "speed": {"budgets", "estimate", "loading", "page", "processes", "records", "results", "settings", "tasks"},
    "fidelity": {
        "budgets",
        "estimate",
        "lm",
        "loading",
        "page",
        "processes",
        "records",
        "results",
        "settings",
        "tasks",
    },
    "calibration": {
        "estimate",
        "fidelity",
        "loading",
        "page",
        "processes",
        "records",
        "results",
        "settings",
    },
    "coverage": {"processes", "records", "results", "settings"},
    "run": {"budgets", "documents", "lm", "loading", "processes", "records", "settings", "speed"},
    "dry_run": {"budgets", "documents", "estimate", "loading", "settings", "tasks"},
}
ENTRANCES = {"commands", "cli", "__main__", "__init__"}  # may import everything
NOT_CODE = {"configs", "assets"}


def room(file: Path) -> str:
    part = file.relative_to(ROOT).parts[0]
    return part.removesuffix(".py")


def imported(file: Path) -> set[str]:
    """The folders and top modules of sa_eval that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "sa_eval":
            found |= {f"sa_eval.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {name.split(".")[1] for name in found if name.startswith("sa_eval.")} - NOT_CODE


@cache
def graph() -> dict[str, set[str]]:
    found = defaultdict(set)
    for file in ROOT.rglob("*.py"):
        found[room(file)] |= imported(file) - {room(file)}
    return found


def test_every_folder_imports_only_what_stands_below_it():
    assert ENTRANCES | TOP | set(ALLOWED) | NOT_CODE >= set(graph())
    found = {name: others - ALLOWED[name] - TOP for name, others in graph().items() if name in ALLOWED}
    assert {name: others for name, others in found.items() if others} == {}


def test_what_everything_may_use_uses_nothing_of_the_house():
    assert {name: graph()[name] - {"messages", "errors"} for name in TOP} == {name: set() for name in TOP}


def test_folders_have_no_circles():
    assert list(TopologicalSorter(graph()).static_order())  # raises CycleError, which names the circle


def test_what_reads_a_finished_run_needs_nothing_of_what_makes_one():
    making = {"loading", "lm", "documents", "run", "processes"}
    assert [name for name in ("records", "results", "page") if graph()[name] & making] == []
