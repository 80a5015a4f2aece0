"""Laws of the declarations: what variants say about themselves is what everybody else reads."""

import inspect
import json
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from models import make_model

import sa_patch
from sa_patch.variants import all_options, modes
from sa_patch.variants.options import option, options_of

ROOT = Path(__file__).parents[3]


def test_the_written_files_are_what_the_declarations_say():
    script = runpy.run_path(str(ROOT / "scripts" / "write_declared.py"))
    for path, text in script["files"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is old: run {script['COMMAND']}"


@pytest.mark.parametrize("name", modes())
def test_every_name_is_a_mode_of_apply_and_of_variant(name):
    model = make_model()
    patch = sa_patch.apply(model, name, 12)
    mode = modes()[name]
    assert patch.variant == sa_patch.variant(name, 12) == mode.variant(window=12, **mode.fixed)
    assert patch.config["mode"] == mode.variant.name and json.loads(json.dumps(patch.config)) == patch.config
    assert mode.help and mode.variant.label


def test_what_a_name_fixes_is_refused_beside_it():
    with pytest.raises(ValueError, match=r"'sa-bucket' is mode 'sa' with form='bucket': leave form='sliding' out, or"):
        sa_patch.variant("sa-bucket", form="sliding")
    with pytest.raises(ValueError, match=r"option 'top_k' is for mode moba, not 'sa-dyadic'"):
        sa_patch.variant("sa-dyadic", top_k=2)
    with pytest.raises(ValueError, match=r"unknown mode 'sa_bucket': .* did you mean 'sa-bucket'"):
        sa_patch.variant("sa_bucket")


def test_a_config_with_any_name_loads(tmp_path):
    (tmp_path / "sa_patch.json").write_text('{"version": 1, "mode": "sa-bucket", "window": 12}')
    patch = sa_patch.load(make_model(), tmp_path)
    assert patch.variant == sa_patch.variant("sa", 12, form="bucket") and patch.config["mode"] == "sa"


@pytest.mark.parametrize("function", [sa_patch.apply, sa_patch.variant])
def test_help_shows_every_option_with_its_default(function):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in all_options()} == {
        name: item.default for name, item in all_options().items()
    }


def test_an_annotation_says_what_an_option_takes():
    @dataclass(frozen=True, kw_only=True)
    class Mine(sa_patch.VARIANTS["swa"]):
        name: ClassVar[str] = "mine"
        depth: int | None = option(None, "a depth", minimum=2)
        # As text, as it is under `from __future__ import annotations`:
        shape: "Literal['round', 'square']" = option("round", "a shape")  # noqa: RUF009
        plain: str = "no option"

    *shared, depth, shape = options_of(Mine)
    assert tuple(shared) == options_of(sa_patch.Variant)
    assert (depth.kind, depth.optional, depth.told) == ("integer", True, "depth{}")
    assert (shape.kind, shape.words, shape.told) == ("choice", ("round", "square"), "{}")
    assert Mine(depth=2, shape="square").options()["plain"] == "no option"
    with pytest.raises(ValueError, match=r"depth must be an integer >= 2, got 1"):
        Mine(depth=1)
    with pytest.raises(ValueError, match=r"unknown shape 'squared': .* did you mean 'square'"):
        Mine(shape="squared")


SCRIPT = """\
import torch
import sa_patch

def run(model: torch.nn.Module) -> None:
    sa_patch.apply(model, mode="sa-dyadic-bucket", window=0.5, decode="sparse", dense_layers=[0, -1], top_k=None)
    sa_patch.apply(model, "moba", 512, kernel="torch", dense_below="crossover", sinks=4).restore()
    sa_patch.apply(model, variant=sa_patch.variant("sa", 512, horizon="dyadic"))
    sa_patch.apply(model, mode="swaa")
    sa_patch.apply(model, windw=512)
    sa_patch.apply(model, decode="sparce")
    sa_patch.apply(model, kernel="tritn")
    sa_patch.variant("sa", form="buckets")
    sa_patch.variant("sa", sinks="4")
"""


def test_a_type_checker_finds_wrong_names_in_a_users_script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "script.py"]
    found = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout)
    lines = [item["range"]["start"]["line"] + 1 for item in found["generalDiagnostics"] if item["severity"] == "error"]
    assert sorted(set(lines)) == [8, 9, 10, 11, 12, 13]


def test_the_package_imports_transformers_when_it_is_needed():
    code = "import sys, sa_patch; assert 'transformers' not in sys.modules; sa_patch.apply; sys.modules['transformers']"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
