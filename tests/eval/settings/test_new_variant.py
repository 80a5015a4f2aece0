"""The law of one declaration: a new variant, and a new option, is in its own file and everywhere else by itself."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import patch_cases
import pytest
from eval_helpers import save_tiny_model
from models import make_model

import sa_patch
from sa_eval.cli import main
from sa_eval.settings import roles
from sa_patch import variants
from sa_patch.variants.base import Form, Variant
from sa_patch.variants.options import option
from sa_patch.variants.sliding_window import SlidingWindow


@dataclass(frozen=True, kw_only=True)
class Strided(SlidingWindow):
    """What a new file in sa_patch/variants would hold: a window whose width a new option cuts."""

    name: ClassVar[str] = "strided"
    label: ClassVar[str] = "throw-away variant"
    help: ClassVar[str] = "a window, or a part of it"
    role: ClassVar[variants.base.Role] = "control"
    caveat: ClassVar[str] = "thrown away"
    forms: ClassVar[Mapping[str, Form]] = {"strided-half": Form("half of the window", {"cut": 2})}

    cut: int = option(1, "what the window is divided by", minimum=1)
    style: Literal["plain", "fancy"] = option("plain", "changes nothing", told="style_{}")

    def window_at(self, length: int) -> int:
        return max(1, super().window_at(length) // self.cut)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The one line in the table."""
    monkeypatch.setitem(variants.VARIANTS, "strided", Strided)


def test_it_patches_a_model_by_every_name():
    model = make_model()
    for mode, options, keys in (("strided", {}, 8), ("strided-half", {}, 4), ("strided", {"cut": 4}, 2)):
        with sa_patch.apply(model, mode, 8, **options) as patch:
            assert int(patch.mask(64)[-1].sum()) == keys
    with pytest.raises(ValueError, match=r"'strided-half' is mode 'strided' with cut=2: leave cut=3 out"):
        sa_patch.variant("strided-half", cut=3)
    with pytest.raises(ValueError, match=r"option 'cut' is for mode strided, not 'sa'"):
        sa_patch.variant("sa", cut=3)


def test_every_law_would_be_tested_on_it():
    cases = {case: value for case, value in patch_cases.every_case().items() if value[0] == "strided"}
    assert set(cases) == {"strided", "strided-half", "strided-cut3", "strided-style_fancy", "strided-extras"}


@pytest.mark.parametrize("command", [[], ["speed"], ["fidelity"]])
def test_help_shows_the_mode_and_the_option(command, capsys):
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "strided-half half of the window" in shown
    assert "--cut N [N ...] what the window is divided by (strided only) (default: 1)" in shown
    assert "--style {plain,fancy} [{plain,fancy} ...] changes nothing" in shown


def test_it_runs_from_the_dry_run_to_the_report(tmp_path, capsys):
    save_tiny_model(tmp_path / "tiny")
    settings = tmp_path / "settings.yaml"
    settings.write_text("modes: [sa, strided, strided-half]\ncut: [1, 4]\nwindow: 32\nlengths: 320\ntasks: cloze\n")
    command = ["--config", str(settings), "--model", str(tmp_path / "tiny"), "--device", "cpu", "--num-samples", "2"]
    command += ["--no-speed", "--seeds", "0", "--out", str(tmp_path / "run")]
    assert main([*command, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    names = ["full", "sa-w32", "strided-w32", "strided-cut4-w32", "strided-half-w32"]
    assert re.findall(r"^(\S+) +0 +\d", plan, re.MULTILINE) == names
    assert main(command) == 0
    table = capsys.readouterr().out
    rows = table[table.index("Length 320") :].splitlines()
    assert [line.split()[0] for line in rows if line.startswith(tuple(names))][:5] == names
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [arm["name"] for arm in results["arms"]] == names
    assert "strided is thrown away." in results["notes"] and "strided" in roles.rivals()
    assert "strided-cut4-w32" in (tmp_path / "run" / "report.html").read_text()


def test_an_option_with_the_name_of_a_setting_is_refused(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Clash(Strided):
        name: ClassVar[str] = "clash"
        tasks: int = option(1, "a name that is taken")

    monkeypatch.setitem(variants.VARIANTS, "clash", Clash)
    with pytest.raises(TypeError, match="option 'tasks' of mode clash has the name of a setting"):
        main(["--modes", "sa"])
    assert issubclass(Clash, Variant)
