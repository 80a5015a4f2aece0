"""docs/support.md is written by the tests: every test marked `cell` is a row, its outcome is what the row says.

A test that passes says "works"; one that uses the `refused` fixture says "refused" with the message it saw. A run that
finds another outcome than the page fails; `pytest --write-support` writes the page anew.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parent.parent / "docs" / "support.md"
AREAS = ("One answer", "Batches", "Caches", "Generation", "Execution", "Ecosystem", "Shapes", "Input")
HEAD = """# What works, and what is refused

Written by `pytest --write-support` from what the tests saw on tiny Qwen3 and Qwen3-MoE models; a test run that sees
anything else fails. "Works" means: the same numbers as the definition, to rounding. What is refused raises one error
before anything is computed wrong; its message is in the table.
"""


# law -> dtype -> [number of comparisons, the largest absolute difference, the largest value expected]
DIFFERENCES: dict[str, dict[str, list[float]]] = {}


def close(found: torch.Tensor, expected: torch.Tensor, law: str, rtol: float, atol: float) -> None:
    """torch.testing.assert_close, and the difference goes into the page under the law's name."""
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    seen = DIFFERENCES.setdefault(law, {}).setdefault(str(found.dtype).removeprefix("torch."), [0, 0.0, 0.0])
    seen[0] += 1
    seen[1] = max(seen[1], float((found.double() - expected.double()).abs().max()))
    seen[2] = max(seen[2], float(expected.abs().max()))


class Support:
    """Collects the outcome of every cell during a test run."""

    def __init__(self, config: pytest.Config):
        self.write = config.getoption("--write-support")
        self.whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
        self.is_worker = hasattr(config, "workerinput")  # of pytest-xdist; the process that started it decides
        if self.write and (not self.whole or self.is_worker or config.getoption("numprocesses", None)):
            raise pytest.UsageError("--write-support needs the whole suite in one process: -n 0, neither files nor -k")
        self.outcomes: dict[tuple[str, str], set[str]] = {}
        self.undecided: set[tuple[str, str]] = set()
        self.complaints: list[str] = []

    @pytest.fixture
    def refused(self, request: pytest.FixtureRequest):
        """Like pytest.raises, and the message goes into the page: `with refused(ValueError, match="..."):`."""

        @contextmanager
        def expect(error: type[Exception], match: str) -> Iterator[None]:
            with pytest.raises(error, match=match) as caught:
                yield
            request.node.stash.setdefault(REFUSAL, str(caught.value))

        return expect

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo):
        report = yield
        message = item.stash.get(REFUSAL, None)
        for mark in item.iter_markers("cell"):
            assert mark.args[0] in AREAS, f"unknown area {mark.args[0]!r} in {item.nodeid}"
            text = "works" if message is None else f"refused: {_plain(message)}"
            report.user_properties.append(("cell", [mark.args[0], mark.args[1], text]))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport):
        """In the process that decides, for the tests of all processes."""
        for area, name, text in (value for key, value in report.user_properties if key == "cell"):
            if report.when == "call" and report.passed:
                self.outcomes.setdefault((area, name), set()).add(text)
            elif report.skipped or report.failed:
                self.undecided.add((area, name))

    def pytest_sessionfinish(self, session: pytest.Session):
        if self.is_worker:
            return
        seen = {cell: _agreed(texts) for cell, texts in self.outcomes.items() if cell not in self.undecided}
        known = read_page()
        if self.write:
            write_page({**{cell: text for cell, text in known.items() if cell in self.undecided}, **seen})
            return
        for cell, text in seen.items():
            # Part of a cell's tests may show another of its refusals.
            same = text == known.get(cell) if self.whole else text.split(":")[0] == known.get(cell, "").split(":")[0]
            if not same:
                self.complaints.append(f"{' / '.join(cell)}: the page says {known.get(cell)!r}, the tests saw {text!r}")
        if self.complaints:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.complaints:
            terminalreporter.section("docs/support.md is out of date: pytest --write-support")
            for line in self.complaints:
                terminalreporter.line(line)


REFUSAL = pytest.StashKey[str]()


def _plain(message: str) -> str:
    return re.sub(r"\s+", " ", message).replace("|", "/")


def _agreed(texts: set[str]) -> str:
    """One text for a cell: tests of one cell may each show another refusal; the page quotes the first."""
    return min(texts) if len({text.split(":")[0] for text in texts}) == 1 else "; ".join(sorted(texts))


def write_page(cells: dict[tuple[str, str], str]) -> None:
    lines = [HEAD]
    for area in AREAS:
        rows = [(name, text) for (owner, name), text in sorted(cells.items()) if owner == area]
        if rows:
            lines += [f"## {area}\n", "| what | outcome |", "|---|---|"]
            lines += [f"| {name} | {text} |" for name, text in rows] + [""]
    lines += ["## Worst differences", "", "Seen when this page was written; not compared by later runs.\n"]
    lines += ["| law | dtype | comparisons | largest difference | largest value |", "|---|---|---|---|---|"]
    for law, by_dtype in sorted(DIFFERENCES.items()):
        lines += [
            f"| {law} | {dtype} | {n} | {worst:.1e} | {size:.3g} |" for dtype, (n, worst, size) in by_dtype.items()
        ]
    lines.append("")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(lines))


def read_page() -> dict[tuple[str, str], str]:
    cells, area = {}, ""
    for line in PAGE.read_text().splitlines() if PAGE.exists() else []:
        if line.startswith("## "):
            area = line[3:]
        elif area in AREAS and line.startswith("| ") and not line.startswith("| what |"):
            name, text = line.strip("| ").split(" | ", 1)
            cells[(area, name)] = text
    return cells
