"""What the tests of hostile input share: folders to damage, and the law that a refusal leaves everything alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import sa_eval
from sa_eval.cli import main
from sa_eval.loading import models, sources
from sa_eval.settings.config import settings_from

ASSETS = Path(sa_eval.__file__).parent / "assets"
WEIGHTS = "model.safetensors"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def copied(place: Path, name: str, model: str = "qwen3-tiny") -> Path:
    """A bundled model in a folder of its own."""
    return Path(shutil.copytree(ASSETS / model, place / name))


def edit_json(folder: Path, file: str = "config.json", **changes: Any) -> None:
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**content, **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def shard(folder: Path, **elsewhere: str) -> None:
    """Split the weights into two files with an index; `elsewhere` maps a tensor to the file the index names for it."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    weight_map = {name: f"part-{idx % 2}.safetensors" for idx, name in enumerate(names)}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in names if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {**weight_map, **elsewhere}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def loaded(folder: str | Path, **changes: Any) -> models.Loaded:
    settings = settings_from({"model": str(folder), "device": "cpu", "threads": 1, **changes})
    return models.load(sources.find(settings.model), settings)


def files_under(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


def refuses(folder: str, capsys: Any, *flags: str) -> str:
    """The command refuses the model: status 2, one line, nothing written, nothing changed. Returns the line."""
    before = files_under(Path.cwd())
    quick = ["--tasks", "cloze", "--lengths", "320", "--modes", "swa", "--window", "32", "--num-samples", "1"]
    machine = ["--device", "cpu", "--threads", "1", "--no-speed", "--out", "run"]
    capsys.readouterr()
    assert main(["--model", folder, *quick, *machine, *flags]) == 2
    shown = capsys.readouterr()
    lines = shown.err.strip().splitlines()
    assert shown.out == "" and len(lines) == 1 and lines[0].startswith("sa-eval: "), shown
    assert files_under(Path.cwd()) == before and not Path("run").exists()
    return lines[0].removeprefix("sa-eval: ")
