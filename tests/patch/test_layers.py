"""The laws of the structure: who may import whom."""

import ast
import sys
from pathlib import Path

import pytest

import sa_patch
from sa_patch.kernels import KERNELS

ROOT = Path(sa_patch.__file__).parent


def imports(file: Path) -> set[str]:
    """All modules a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def reaches(file: Path, prefix: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for name in imports(file))


def test_only_integration_imports_transformers():
    assert {file.parent for file in ROOT.rglob("*.py") if reaches(file, "transformers")} == {ROOT / "integration"}


def test_sa_patch_never_imports_sa_eval():
    assert not [file for file in ROOT.rglob("*.py") if reaches(file, "sa_eval")]


def test_variants_patterns_and_the_reference_need_torch_only():
    files = [*(ROOT / "variants").glob("*.py"), *(ROOT / "patterns").glob("*.py"), ROOT / "kernels" / "reference.py"]
    third_party = {"transformers", "numpy", "triton", "accelerate", "sa_eval", "sa_patch.integration", "sa_patch.api"}
    assert not [(file.name, name) for file in files for name in third_party if reaches(file, name)]


def at_the_top(file: Path) -> set[str]:
    """The modules a file imports when it is imported itself: not those inside functions or for types alone."""
    body = [node for node in ast.parse(file.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {name.name for node in body if isinstance(node, ast.Import) for name in node.names} | {
        node.module for node in body if isinstance(node, ast.ImportFrom) and node.module
    }


def test_analysis_needs_torch_alone_until_a_prompt_is_read_or_a_picture_drawn():
    standard = {"__future__", *sys.stdlib_module_names}
    for file in (ROOT / "analysis").glob("*.py"):
        found = {name for name in at_the_top(file) if name.split(".")[0] not in {"torch", "sa_patch", *standard}}
        assert not found, file
        own = {name for name in at_the_top(file) if name.startswith("sa_patch.")}
        assert not [name for name in own if name.startswith(("sa_patch.integration", "sa_patch.api"))], file
        assert not reaches(file, "matplotlib") or file.name == "pictures.py", file


def test_nothing_needs_analysis_but_who_shows_it():
    users = {file.name for file in ROOT.rglob("*.py") if reaches(file, "sa_patch.analysis")}
    inside = {file.name for file in (ROOT / "analysis").glob("*.py")}
    assert users - inside == {"patch.py"}
    assert "sa_patch.analysis.pictures" not in at_the_top(ROOT / "patch.py")


def test_kernels_never_import_each_other_nor_any_variant():
    """A family of kernels is a folder, or a file: it imports what is common to all of them, and itself."""
    families = {module.removesuffix(".kernel") for module, _ in KERNELS.values()}
    for file in (ROOT / "kernels").rglob("*.py"):
        module = "sa_patch." + ".".join(file.relative_to(ROOT).with_suffix("").parts)
        others = [name for name in families if module != name and not module.startswith(name + ".")]
        assert not [name for name in others if reaches(file, name)], file
        assert not reaches(file, "sa_patch.variants"), file


def test_every_folder_with_code_is_installed():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    settings = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(file.parent.relative_to(ROOT.parent).parts) for file in ROOT.rglob("__init__.py")}
    assert folders == {name for name in settings["packages"] if name.split(".")[0] == "sa_patch"}
