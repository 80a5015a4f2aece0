"""The laws of the pages: what they show runs, prints what they say, and is spelled as the programs spell it."""

import pytest
import snippets

import sa_patch
from sa_eval.settings import declared

NAMES = {page: str(page.relative_to(snippets.ROOT)) for page in snippets.PAGES}
FENCED = [page for page in snippets.PAGES if snippets.blocks(page)]


@pytest.fixture
def assumed():
    return snippets.assumed()


@pytest.mark.parametrize("page", FENCED, ids=NAMES.get)
def test_every_block_of_a_page_holds(page, request, tmp_path, monkeypatch):
    found = snippets.blocks(page)
    known = {"python", "sh", *snippets.PLAIN}
    assert {block.language for block in found} <= known, f"a block of {page.name} has no known language"
    for block in found:
        if block.language == "sh":
            for command in snippets.commands(block):
                with monkeypatch.context() as patched:
                    snippets.check(command, patched)
    if any(block.language == "python" for block in found):
        given = {} if page.name in snippets.PASTED else dict(request.getfixturevalue("assumed"))
        monkeypatch.chdir(tmp_path)
        with snippets.bundled_instead_of_hub(monkeypatch):
            assert snippets.run_python(found, page, {"__name__": "__main__", **given})
        if "model" in given:
            sa_patch.restore(given["model"])


def test_the_check_sees_what_is_wrong(monkeypatch, tmp_path):
    wrong = [
        "sa-eval --modes routd",
        "sa-eval --windows 3",
        "sa-eval speed --repeat 3",
        "sa-eval fidelity --config nowhere",
        "sa-eval tune --second 3",
        "sa-eval calibrate --model x --window 64 --text",
        "sa-lm-eval run --model sa --model_args pretrained=x,mode=sa,windw=3 --tasks y",
        "accelerate launch --gpus 3 -m sa_eval run",
        "torchrun --nproc-per-node 2 -m sa_eval run --tpp",
        "python benchmarks/attention.py --length 3",
        "python benchmarks/attentions.py",
        "pip install -e .[evil]",
        "pytest --write-suport",
        "jupyter lab notebooks/00_nothing.ipynb",
        "make all",
    ]
    for line in wrong:
        (command,) = snippets.commands(snippets.Block("sh", line, 1))
        with monkeypatch.context() as patched, pytest.raises((AssertionError, ValueError, SystemExit)):
            snippets.check(command, patched)
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match="it prints\n1"):
        snippets.run_python(snippets.blocks(page), page, {})
    page.write_text("- a list\n\n      ```sh\n      sa-eval\n      ```\n")
    with pytest.raises(AssertionError, match="a fence that is none"):
        snippets.blocks(page)


def test_modes_in_the_tables_of_pages_exist():
    """The first column of the decision table and of README's table of variants."""
    modes = set(declared.declared().modes)
    page = (snippets.ROOT / "docs" / "choosing.md").read_text()
    rows = [row.split("|")[2] for row in page.splitlines() if row.startswith("|")][2:]
    named = [row.split("`")[1] for row in rows if row.strip().startswith("`")]
    assert len(named) >= 8 and {name for name in named if name != "sa-eval calibrate"} <= modes
