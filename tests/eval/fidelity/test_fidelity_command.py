"""Laws of `sa-eval fidelity` as a command: texts are used as told, files come out, errors say what to do."""

import contextlib
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from eval_helpers import save_tiny_model, tiny_tokenizer

from sa_eval.cli import main
from sa_eval.commands import fidelity as command
from sa_eval.fidelity import loss_charts, measuring, passages, texts
from sa_eval.fidelity.types import Fidelity
from sa_eval.records.result_folder import read_result
from sa_eval.settings.config import SettingsError, settings_from
from sa_eval.tasks import TASKS

WORDS = "The old baker left the ring in the kitchen, and then the young teacher found the coin near the river. "


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "notes.txt"
    path.write_text(" ".join(f"{number} {WORDS}" for number in range(40)))
    return str(path)


def flags(model, out, *more):
    chosen = more if "--modes" in more else ("--modes", "swa", "sa", *more)
    return ["fidelity", "--model", model, "--out", str(out), "--window", "16", "--device", "cpu", *chosen]


def results_of(out):
    return json.loads((out / "fidelity.json").read_text())


@pytest.fixture(scope="module")
def done(model, text, tmp_path_factory):
    """One run with everything: its directory, and what it printed."""
    out, printed = tmp_path_factory.mktemp("runs") / "out", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(flags(model, out, "--text", text, "--length", "64", "128", "--passages", "3")) == 0
    return out, printed.getvalue()


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take seconds."""
    monkeypatch.setattr("sa_eval.fidelity.loss_page.write", lambda directory, results: None)


def test_one_command_gives_a_table_numbers_and_pictures(done, text):
    out, shown = done
    found = results_of(out)
    assert re.search(r"^Length 64 tokens: 3 passages, 189 predictions", shown, re.MULTILINE)
    names = ("losses", "kl_by_position", "kl_by_copy_distance", "kept_mass_by_distance", "layers")
    pictures = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    made = {"fidelity.json", "fidelity.csv", "report.html", "figures", "run.lock"}
    assert {path.name for path in out.iterdir()} == made
    assert {path.name for path in (out / "figures").iterdir()} == pictures
    assert all((out / "figures" / name).read_bytes().startswith((b"\x89PNG", b"<?xml")) for name in pictures)
    assert [(cell["arm"], cell["length"]) for cell in found["cells"]] == [
        (arm, length) for arm in ("full", "swa-w16", "sa-w16") for length in (64, 128)
    ]
    assert found["texts"][0]["sha256"] == hashlib.sha256(Path(text).read_bytes()).hexdigest()
    assert all(row["tokens"] == row["tokens_used"] + row["tokens_left"] for row in found["texts"])
    assert re.fullmatch("[0-9a-f]{64}", found["model"]["weights_sha256"]) and found["versions"]["torch"]
    assert found["finished"] and not found["interrupted"] and not found["failures"]


def test_the_csv_holds_the_numbers_of_the_json(done):
    out, _ = done
    rows = list(csv.DictReader((out / "fidelity.csv").read_text().splitlines()))
    for cell in results_of(out)["cells"]:
        mine = [row for row in rows if (row["arm"], row["length"]) == (cell["arm"], str(cell["length"]))]
        (overall,) = (row for row in mine if row["by"] == "overall")
        assert all(float(overall[name]) == cell["overall"][name] for name in ("kl", "nats", "kept_mass"))
        assert [float(row["kept_mass"]) for row in mine if row["by"] == "layer"] == [
            layer["kept_mass"] for layer in cell["layers"]
        ]


def test_pictures_show_every_arm_and_every_point(done):
    results = read_result(str(done[0]), "fidelity", Fidelity)
    for picture in loss_charts.pictures(results).values():
        figure = picture.alone()
        figure.draw_without_rendering()
        for panel, axes in zip(picture.panels, figure.axes, strict=True):
            shown = [one.name for one in (panel.rows if picture.name == "losses" else panel.series)]
            assert sorted(shown) == sorted(["full", "swa-w16", "sa-w16"][picture.name == "losses" :])
            low, high = axes.get_ylim()
            values = [value for line in axes.lines for value in line.get_ydata()]
            assert all(min(low, high) <= value <= max(low, high) for value in values if value == value)


def test_the_largest_loss_comes_first_and_full_last(done):
    out, shown = done
    cells = results_of(out)["cells"]
    losses = {cell["arm"]: cell["overall"]["kl"] for cell in cells if cell["length"] == 128}
    order = re.findall(r"^(full|s\w+-w16) ", shown[shown.index("Length 128") :], re.MULTILINE)
    order = list(dict.fromkeys(order))  # notes below the table name arms, too
    assert order == sorted(losses, key=losses.get, reverse=True) and order[-1] == "full"


def test_two_runs_are_identical(done, model, text, tmp_path, capsys, undrawn):
    given = flags(model, tmp_path / "out", "--text", text, "--length", "64", "128", "--passages", "3")
    assert main(given) == 0
    assert results_of(tmp_path / "out")["cells"] == results_of(done[0])["cells"]


def test_ctrl_c_keeps_the_arms_that_are_finished(model, text, tmp_path, capsys, monkeypatch, undrawn):
    real = measuring.measure

    def interrupted(subject, arm, *rest):
        if arm.name == "sa-w16":
            raise KeyboardInterrupt
        return real(subject, arm, *rest)

    monkeypatch.setattr(measuring, "measure", interrupted)
    assert main(flags(model, tmp_path / "out", "--text", text, "--length", "64")) == 130
    found, shown = results_of(tmp_path / "out"), capsys.readouterr()
    assert [cell["arm"] for cell in found["cells"]] == ["full", "swa-w16"] and found["interrupted"]
    assert "interrupted: kept full, swa-w16; not measured: sa-w16" in shown.err
    assert "swa-w16" in shown.out


def test_finished_arms_are_on_disk_before_the_next_begins(model, text, tmp_path, capsys, monkeypatch, undrawn):
    real, seen = measuring.measure, []

    def look(subject, arm, *rest):
        file = tmp_path / "out" / "fidelity.json"
        seen.append([cell["arm"] for cell in json.loads(file.read_text())["cells"]] if file.exists() else [])
        return real(subject, arm, *rest)

    monkeypatch.setattr(measuring, "measure", look)
    assert main(flags(model, tmp_path / "out", "--text", text, "--length", "64")) == 0
    assert seen == [[], ["full"], ["full", "swa-w16"]]


def test_an_arm_that_fails_is_told_and_the_others_go_on(model, text, tmp_path, capsys, undrawn):
    given = flags(model, tmp_path / "out", "--text", text, "--length", "64", "--dense-layers", "7", "--modes", "swa")
    assert main(given) == 1
    found = results_of(tmp_path / "out")
    assert [cell["arm"] for cell in found["cells"]] == ["full"] and len(found["failures"]) == 1
    assert "dense_layers" in capsys.readouterr().out


def test_the_bundled_texts_are_scored_at_their_answers(model, tmp_path, capsys, undrawn):
    assert main(flags("qwen3-tiny", tmp_path / "out", "--lengths", "320", "--passages", "1", "--modes", "swa")) == 0
    found = results_of(tmp_path / "out")
    cell = found["cells"][-1]
    assert {row["name"] for row in found["texts"]} == set(TASKS) and cell["passages"] == len(TASKS)
    assert 0 < cell["overall"]["predictions"] < cell["all_predictions"]["predictions"] / 2
    assert "KL all" in capsys.readouterr().out


def test_bundled_texts_are_the_same_each_time_and_end_with_answers():
    tokenizer = tiny_tokenizer()
    one, misfits = texts.bundled(tokenizer, 400, 2, 0)
    assert one == texts.bundled(tokenizer, 400, 2, 0)[0] and not misfits
    assert one.texts != texts.bundled(tokenizer, 400, 2, 1)[0].texts
    for passage in one.passages:
        assert len(passage.ids) <= 400 and len(passage.answers) == len(passage.ids) and passage.answers[-1]
    ended = texts.bundled(tokenizer, 400, 1, 0, end=[1])[0].passages
    assert all(passage.ids[-1] == 1 and passage.answers[-1] for passage in ended)


def test_a_long_text_is_cut_into_passages_spread_over_it_and_nothing_is_lost_silently():
    tokenizer = tiny_tokenizer()
    text = texts.Text("long", " ".join(str(number) for number in range(2000)), "0" * 64)
    ids = texts.encode(tokenizer, text.content)
    whole = texts.cut([text], tokenizer, 100, None)
    assert [list(passage.ids) for passage in whole.passages] == [
        ids[start : start + 100] for start in range(0, len(ids) - 99, 100)
    ]
    (row,) = whole.texts
    assert (row.tokens, row.tokens_left) == (len(ids), len(ids) % 100)
    few = texts.cut([text], tokenizer, 100, 3)
    count = len(whole.passages)
    assert [passage.ids for passage in few.passages] == [whole.passages[turn * count // 3].ids for turn in range(3)]
    assert few.texts[0].tokens_left == len(ids) - 300 and "tokens of the texts are left out" in passages.used(few)


def test_every_passage_begins_as_the_tokenizer_begins_a_text():
    class Marked:
        eos_token_id = None

        def __call__(self, text, add_special_tokens=True):
            ids = [3 + ord(letter) % 50 for letter in text]
            return {"input_ids": [1, *ids, 2] if add_special_tokens else ids}

    found = texts.cut([texts.Text("text", "a" * 200, "0")], Marked(), 64, None)
    assert all(passage.ids[0] == 1 and len(passage.ids) == 64 and 2 not in passage.ids for passage in found.passages)
    assert len(found.passages) == 200 // 63 and found.texts[0].tokens_left == 200 - 3 * 63


def test_a_text_shorter_than_the_length_is_one_passage(model, text, tmp_path, capsys, undrawn):
    short = tmp_path / "short.txt"
    short.write_text(WORDS * 3)
    assert main(flags(model, tmp_path / "out", "--text", str(short), "--length", "512", "--modes", "swa")) == 0
    found = results_of(tmp_path / "out")
    assert found["cells"][0]["passages"] == 1 and found["texts"][0]["tokens_left"] == 0
    assert "there is no interval" in capsys.readouterr().out and found["cells"][0]["intervals"]["kl"] is None


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (None, (), "cannot be read: No such file"),
        (b"", (), "is empty"),
        (b" \n ", (), "is empty"),
        (b"PK\x00\x01", (), "is binary"),
        ("Größe ".encode("latin-1") * 50, (), "is no UTF-8 at byte 2"),
        (b"too short", (), "at least 32 are needed"),
        (b"word " * 500, ("--length", "2048"), "longer than the model's 1024 positions"),
        (b"word " * 500, ("--length", "16"), "too short: passages have at least 32"),
        (b"word " * 500, ("--passages", "0"), "passages must be a whole number"),
        (b"word " * 500, ("--modes", "swo"), "mode 'swo' is not known"),
    ],
)
def test_bad_texts_give_one_message_and_status_2(model, tmp_path, capsys, content, more, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert main(flags(model, tmp_path / "out", "--text", str(path), *more)) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown and not (tmp_path / "out").exists()


def test_the_same_text_twice_is_refused(text, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(Path(text).read_bytes())
    with pytest.raises(SettingsError, match=r"the same as notes\.txt"):
        texts.read([text, str(copy)])
    with pytest.raises(SettingsError, match="cannot be read"):
        texts.read([str(tmp_path)])


def test_help_and_bad_arguments_import_nothing_heavy():
    code = (
        "import sys; from sa_eval.cli import main; from sa_eval.commands.fidelity import build_parser;"
        "build_parser().format_help(); main(['fidelity', '--window', '0']); main(['fidelity', '--passages', 'x']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'sa_patch', 'lm_eval', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_every_setting_that_makes_an_arm_is_a_flag():
    from sa_eval.settings.arms import arms_from

    asked = set()

    class Recorded:
        def __getattr__(self, name):
            asked.update(settings.options if name == "options" else [name])
            return getattr(settings, name)

    settings = settings_from({"modes": "sa,moba"})
    arms_from(Recorded())
    assert asked - {"decode"} <= {*command.shared(), "arms"}  # a text is only read here, nothing is decoded


def test_a_file_of_settings_gives_the_arms(model, text, tmp_path, capsys, undrawn):
    config = tmp_path / "settings.yaml"
    config.write_text("modes: [moba]\nwindow: [8, 16]\ntasks: [cloze]\nnum_samples: 3\n")
    given = ["fidelity", "--config", str(config), "--model", model, "--text", text, "--length", "64"]
    assert main([*given, "--out", str(tmp_path / "out"), "--window", "16"]) == 0
    assert [arm["name"] for arm in results_of(tmp_path / "out")["arms"]] == ["full", "moba-w16"]
    config.write_text("windows: [8]\n")
    assert main([*given, "--out", str(tmp_path / "other")]) == 2 and "did you mean 'window'" in capsys.readouterr().err
