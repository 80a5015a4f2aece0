"""Checkpoints of gated models: written so that nothing else loads them as a plain model, and loaded again.

config.json names a model type that transformers does not know, and keeps the real one beside it.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from sa_patch.integration.gateable import has_adapters
from sa_patch.integration.gates import NAMES, STEPS
from sa_patch.integration.state import state
from sa_patch.saved import config_file, config_of, read_config, write_config

MODEL_TYPE = "sa_patch_gated"
_BASE_TYPE = "sa_patch_base_model_type"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def save_pretrained(model: Any, save_directory: str | Path, is_main_process: bool = True, **kwargs: Any) -> None:
    """A gated model's own `save_pretrained`: weights and gates, and a config that no plain model can be loaded by."""
    held = state(model)
    if held is not None and held.hides_gates:
        raise ValueError(
            "another patch took the place of this model's gates, which would not be saved: leave its `with`, or put "
            "the gates back with what sa_patch.gate returned (with gated: model.save_pretrained(...)). "
            "sa_patch.restore(model) drops them, and what is left can be saved as a plain model"
        )
    if kwargs.get("push_to_hub"):
        raise NotImplementedError(
            "push_to_hub=True would upload the folder before it is marked as a gated model: save it, then upload it "
            "(huggingface_hub.upload_folder)"
        )
    if kwargs.get("variant"):
        raise NotImplementedError(f"variant={kwargs['variant']!r}: a gated model has one set of weights per folder")
    if has_adapters(model):
        raise NotImplementedError(
            "this gated model holds adapters, and would be saved without them or in a form that nothing loads: save it "
            "before it gets them, and then the adapters with the save_pretrained of peft's "
            "get_peft_model(..., modules_to_save=['gate_swa', 'gate_sa']); or merge them (merge_and_unload)"
        )
    type(model).save_pretrained(model, save_directory, is_main_process=is_main_process, **kwargs)
    if held is None or not is_main_process:
        return
    written = [file for file in (Path(save_directory, _WEIGHTS), Path(save_directory, _INDEX)) if file.exists()]
    if len(written) == 2:  # one is of an earlier save in another form
        min(written, key=lambda file: file.stat().st_mtime_ns).unlink()
    file = Path(save_directory, "config.json")
    config = json.loads(file.read_text(encoding="utf-8"))
    config = {"model_type": MODEL_TYPE, _BASE_TYPE: config.pop("model_type"), **config}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_config(save_directory, config_of(held.plan, held.kernel))


# What a gated model carries instead of its class's methods.
SAVING = {"save_pretrained": save_pretrained}


def is_gated(folder: str | Path) -> bool:
    """Whether a folder holds the checkpoint of a gated model."""
    file = Path(folder, "config.json")
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("model_type") == MODEL_TYPE


def local_folder(path: str | Path, **kwargs: Any) -> Path:
    """The folder of a checkpoint: the path, or where a repository of the hub was downloaded to.

    Raises:
        ValueError: for a folder without a patch config.
    """
    if not Path(path).is_dir() and (Path(path).is_file() or Path(path).is_absolute() or str(path).count("/") > 1):
        raise ValueError(f"there is no folder {path}: give the folder of a checkpoint, or a repository of the hub")
    folder = Path(path) if Path(path).is_dir() else Path(snapshot_download(str(path), **kwargs))
    if not config_file(folder).is_file():
        if is_gated(folder):
            raise ValueError(
                f"{path} is a gated model without its {config_file(folder).name}, which says how it attends: copy it "
                "from where the model was saved"
            )
        if Path(folder, "adapter_config.json").is_file():
            raise ValueError(
                f"{path} holds a PEFT adapter, not a model: load the gated model it was trained on with "
                "sa_patch.from_pretrained, and then peft.PeftModel.from_pretrained(model, path)"
            )
        raise ValueError(
            f"{path} has no {config_file(folder).name}: it is a plain model. Load it with "
            "AutoModelForCausalLM.from_pretrained, and patch it with sa_patch.apply"
        )
    return folder


def load_model(folder: Path, **kwargs: Any) -> nn.Module:
    """The model of a checkpoint, without patch and gates.

    Args:
        **kwargs: for transformers' `from_pretrained`.

    Raises:
        ValueError: when weights of the model are missing, or there are others than gates beside them.
    """
    if not is_gated(folder):
        return AutoModelForCausalLM.from_pretrained(folder, **kwargs)
    given = {name: value for name, value in read_config(folder / "config.json").items() if name != "model_type"}
    for name in ("config", "output_loading_info", "ignore_mismatched_sizes", "variant", "subfolder"):
        if name in kwargs:
            raise ValueError(f"{name}= can't be given for a gated model: its config and its loading are its own")
    config = AutoConfig.for_model(given.pop(_BASE_TYPE), **given)
    for name in [name for name in kwargs if name in given and name not in ("dtype", "torch_dtype")]:
        setattr(config, name, kwargs.pop(name))
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report the gates as unexpected
    try:
        # Sizes that don't match are told below, with their names: transformers would tell them in its silenced log.
        how = {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = _class_of(config).from_pretrained(folder, **how, **kwargs)
    finally:
        logging.set_verbosity(level)
    model, report = loaded
    strange = [name for name in report["unexpected_keys"] if not _is_of_gates(name)]
    wrong = [*report["missing_keys"], *strange, *report["mismatched_keys"]]
    if wrong:
        raise ValueError(f"{folder} does not fit {type(model).__name__}: missing, unknown or of another size: {wrong}")
    return model


def _class_of(config: Any) -> Any:
    """The class a checkpoint was saved from, where transformers has it, so that classifiers load as classifiers."""
    saved = config.architectures or ()
    return next((getattr(transformers, name) for name in saved if hasattr(transformers, name)), AutoModelForCausalLM)


def load_gates(model: nn.Module, folder: Path) -> None:
    """Fill a gated model's gates from its checkpoint.

    A checkpoint without the count of training steps (written by a tool that keeps parameters only, like DeepSpeed's
    ZeRO-3) is loaded with a warning: only training that goes on from it draws other permutations.

    Raises:
        ValueError: when the checkpoint has other gates than the model.
    """
    wanted = {name for name in model.state_dict() if _is_of_gates(name)}
    found = dict(_gates_in(folder))
    uncounted = {name for name in wanted - found.keys() if name.endswith("_extra_state")}
    if uncounted:
        warnings.warn(
            f"{folder} does not say how many steps its gates were trained for: training that goes on from it draws the "
            "permutations of the first steps again",
            stacklevel=3,
        )
    if wanted - uncounted != found.keys():
        raise ValueError(
            f"{folder} and the model have different gates: {sorted((wanted - uncounted) ^ found.keys())}. "
            f"Was {config_file(folder).name} edited?"
        )
    with torch.no_grad():
        for name, tensor in found.items():
            owner, _, kind = name.rpartition(".")
            module = model.get_submodule(owner)
            if kind == "_extra_state":
                module.set_extra_state(tensor)
            else:
                module.get_parameter(kind).copy_(tensor)


def _is_of_gates(name: str) -> bool:
    return any(part in (*NAMES, STEPS) for part in name.split("."))


def _gates_in(folder: Path) -> Iterator[tuple[str, Tensor]]:
    index = folder / _INDEX
    files = [_WEIGHTS]  # which transformers takes where both are there
    if index.is_file() and not (folder / _WEIGHTS).is_file():
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({file for name, file in places.items() if _is_of_gates(name)})
    for file in files:
        with safe_open(folder / file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (not a mapping)
                if _is_of_gates(name):
                    yield name, weights.get_tensor(name)
