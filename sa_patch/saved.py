"""sa_patch.json: where a patch is saved, how the file is read, and what it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sa_patch.errors import unknown
from sa_patch.plan import Plan
from sa_patch.variants import Variant, make_variant, modes
from sa_patch.variants.gated import Gated

CONFIG_VERSION = 2  # 1: one variant for all layers; 2: a plan
CONFIG_NAME = "sa_patch.json"
WINDOW = 512  # of version 1, where it names none
OF_A_PLAN = ("kernel", "window", "variants", "layers")


def config_file(path: str | Path) -> Path:
    """The config's file: a path that ends in .json, or sa_patch.json in the folder that any other path names."""
    path = Path(path)
    return path if path.suffix == ".json" and not path.is_dir() else path / CONFIG_NAME


def config_of(plan: Plan, kernel: str) -> dict[str, object]:
    """Everything needed to apply a patch again, JSON-serialisable.

    Raises:
        ValueError: for a plan of variants of your own, which could not be made from their names.
    """
    if plan.single is None or plan.window is not None:
        return {"version": CONFIG_VERSION, "kernel": kernel, **plan.to_config()}
    return {"version": 1, "mode": plan.single.name, "kernel": kernel, **plan.single.options()}


def write_config(path: str | Path, config: Mapping[str, Any]) -> Path:
    """The config as JSON in a file, or as sa_patch.json in a folder; missing folders are made."""
    file = config_file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config, indent=2) + "\n")
    return file


def read_config(path: str | Path) -> dict[str, Any]:
    """What a file (or sa_patch.json in a folder) holds.

    Raises:
        ValueError: when there is no such file, or it is no patch config.
    """
    file = config_file(path)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"there is no patch config {file}: write one with Patch.save") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no patch config: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is no patch config: it has no version")
    return config


def from_config(config: Mapping[str, Any], name: str | Path) -> tuple[Variant | Plan, str]:
    """The variant (version 1) or the plan (version 2) of a config, and its kernel.

    Args:
        name: what the config is called in messages.

    Raises:
        ValueError: when it is no patch config, or one that this release does not know.
    """
    version = config.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"{name} is no patch config: it has no version")
    if version > CONFIG_VERSION:
        raise ValueError(
            f"{name} has config version {version}, this release of sa_patch reads up to {CONFIG_VERSION}: upgrade "
            "sa_patch, or apply the options by hand"
        )
    settings = {key: value for key, value in config.items() if key not in ("version", "kernel")}
    kernel = config.get("kernel", "auto")
    if version > 1:
        unknown_names = settings.keys() - set(OF_A_PLAN)
        if unknown_names:
            raise unknown("key of a plan", min(unknown_names), OF_A_PLAN)
        return Plan.from_config(settings), kernel
    mode = settings.pop("mode", None)
    if mode == Gated.name:
        raise ValueError(
            f"{name} is of a gated model, whose gates lie among its weights: load both with "
            "sa_patch.from_pretrained(folder)"
        )
    if not isinstance(mode, str) or mode not in modes():
        raise unknown("mode", mode, modes())
    for key in ("variant", "model", "plan"):
        if key in settings:
            raise ValueError(f"{name} holds {key!r}, which is no option: it names a mode and its options")
    return make_variant(mode, {"window": WINDOW, **settings}), kernel
