"""Laws of what may be continued: only the same model, code, versions, settings and documents; a key stands for them."""

import json
from pathlib import Path

import pytest
from run_helpers import contents

from sa_eval import environment
from sa_eval.cli import main
from sa_eval.documents import prepared
from sa_eval.records import keys
from sa_eval.settings.arms import Arm

pytest_plugins = "run_fixtures"
pytestmark = pytest.mark.usefixtures("small_chunks")


def change_weights(model, monkeypatch, out):
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1e-6
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def change_config(model, monkeypatch, out):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))


def change_versions(model, monkeypatch, out):
    versions = environment.versions()
    monkeypatch.setattr(environment, "versions", lambda: {**versions, "torch": "1.0"})


def change_code(model, monkeypatch, out):
    monkeypatch.setattr(keys, "code_hash", lambda: "another")


def change_settings(model, monkeypatch, out):
    text = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(text.replace("batch_size: 2", "batch_size: 3"))


def change_documents(model, monkeypatch, out):
    honest = prepared.document_hash
    monkeypatch.setattr(prepared, "document_hash", lambda requests, target: honest(requests, f"{target} "))


def change_a_record(model, monkeypatch, out):
    file = out / "records" / "full.seed0.jsonl"
    first, rest = file.read_text().split("\n", 1)
    file.write_text(json.dumps({**json.loads(first), "key": "another"}) + "\n" + rest)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (change_weights, "model weights: "),
        (change_config, "model files: "),
        (change_versions, "versions torch: "),
        (change_code, "code: "),
        (change_settings, "setting batch_size: 2 then, 3 now"),
        (change_documents, "4 of 4 documents of cloze@192"),
        (change_a_record, "document 0 of majority_topic@192 under full, seed 0"),
    ],
)
def test_what_differs_is_named_refused_and_left_as_it_is(run_model, killed, monkeypatch, capsys, change, name):
    folder = Path(run_model)
    saved = {file: file.read_bytes() for file in folder.iterdir()}
    change(folder, monkeypatch, killed)
    before = contents(killed)
    try:
        assert main(["resume", str(killed)]) == 2
    finally:
        for file, content in saved.items():
            file.write_bytes(content)
    shown = capsys.readouterr().err
    assert name in shown and "cannot be continued" in shown and "--out <new directory>" in shown
    assert contents(killed) == before


def test_a_key_stands_for_everything_that_decides_a_score():
    parts = {"model": {"weights": "a"}, "code": "b", "versions": {"torch": "2"}, "dtype": "float32", "device": "cpu"}
    arm = Arm("sa-w24", "sa", "sa", 24, seeds=(0, 1), options={"decode": "full"})
    others = [keys.Keys({**parts, name: "other"}).of(arm, 0, "cloze@192", "hash") for name in parts]
    made = keys.Keys(parts)
    others += [
        made.of(arm, 1, "cloze@192", "hash"),
        made.of(arm, 0, "cloze@256", "hash"),
        made.of(arm, 0, "cloze@192", "other"),
        made.of(Arm("sa-w24", "sa", "sa", 25, seeds=(0, 1), options={"decode": "full"}), 0, "cloze@192", "hash"),
        made.of(Arm("sa-w24", "sa", "sa", 24, seeds=(0, 1), options={"decode": "sparse"}), 0, "cloze@192", "hash"),
        made.of(Arm("sa-w24", "sa", "sa", 24, seeds=(0, 1), kernel="reference"), 0, "cloze@192", "hash"),
    ]
    same = made.of(Arm("renamed", "sa", "sa", 24, seeds=(0,), options={"decode": "full"}), 0, "cloze@192", "hash")
    assert same == made.of(arm, 0, "cloze@192", "hash")
    assert len({same, *others}) == 1 + len(others)
