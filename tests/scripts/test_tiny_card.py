"""A bundled model's card tells one clean history: it is written of whole runs alone."""

import json
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
OPTIONS = {"decay_at": 50, "decay_steps": 50}


@pytest.mark.parametrize(
    ("steps", "whole"),
    [
        pytest.param([25, 50, 75, 100], True, id="whole"),
        pytest.param([25, 50, 75], False, id="broken off"),
        pytest.param([25, 50, 50, 75, 100], False, id="a step twice: begun again"),
        pytest.param([25, 75, 50, 100], False, id="back from an older checkpoint"),
    ],
)
def test_only_a_run_from_its_first_step_to_its_last_gets_a_card(tmp_path, monkeypatch, steps, whole):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import tiny_card

    (tmp_path / "options.json").write_text(json.dumps(OPTIONS))
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
    if whole:
        lines, options = tiny_card._whole(tmp_path)
        assert [line["step"] for line in lines] == steps and options == OPTIONS
    else:
        with pytest.raises(ValueError, match="is not one run to step 100: its log ends at"):
            tiny_card._whole(tmp_path)
