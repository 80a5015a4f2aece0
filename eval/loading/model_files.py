"""A model's files before transformers reads them: nothing may run, be unpickled or come from outside.

transformers takes more from a folder than an evaluation can: it reads pickles that an index of safetensors names, and
puts an adapter over the weights unasked.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.hub import cached_file

from sa_eval.loading import checkpoint
from sa_eval.messages import shown
from sa_eval.settings.config import Settings, SettingsError
from sa_patch.integration.checkpoints import MODEL_TYPE

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER = "adapter_config.json"
WITH_CODE = ("config.json", "generation_config.json", "tokenizer_config.json")
JSON_FILES = (*WITH_CODE, ADAPTER, SAFE_INDEX, PICKLED_INDEX)
DISTRIBUTED = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")  # transformers prefers it to model.safetensors
LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
MOST_LAYERS = 10_000  # building a module takes a millisecond: beyond any model, and a typing error would take hours

Content = dict[str, Any]  # a JSON object as somebody else wrote it
Files = dict[str, Content | None]  # a model's JSON files by name


def check_code(name: str, path: str, hub: Mapping[str, str | bool], settings: Settings) -> Files:
    """Refuse broken JSON, code of the model's own, adapters and no language models; returns the JSON files by name."""
    found = {file: _read_json(path, file, hub) for file in JSON_FILES}
    if not settings.trust_remote_code:
        for file in WITH_CODE:
            for code in _code_in(found[file]):
                raise SettingsError(
                    f"the model {name} brings its own code ({file}: {shown(code)}), which would run on this machine: "
                    "read it and ask for --trust-remote-code, or remove the entry to run transformers' own classes"
                )
    if found[ADAPTER] is not None:
        raise SettingsError(
            f"the model {name} holds an adapter ({ADAPTER}), which would change the weights unseen: merge it into the "
            "model first (peft's merge_and_unload) and save the result"
        )
    _check_kind(name, found["config.json"] or {})
    return found


def check_config(name: str, config: Content) -> Files:
    """Refuse what is no language model; for a model whose config lies in no file of its own."""
    _check_kind(name, config)
    return {**dict.fromkeys(JSON_FILES), "config.json": config}


def check_weights(name: str, folder: Path | None, found: Files, settings: Settings) -> None:
    """Refuse weights that are pickled, incomplete, damaged or ambiguous, from names and headers alone.

    `folder` is None while a hub model is not here yet, and for a GGUF file: then only what an index names is looked at.
    """
    config = found["config.json"] or {}
    if folder is not None and any(DISTRIBUTED.fullmatch(file.name) for file in folder.iterdir()):
        raise SettingsError(
            f"the model {name} is a distributed checkpoint, which is read without a look at extra tensors: consolidate "
            "it first (transformers.distributed.consolidate_distributed_checkpoint)"
        )
    names = _named(name, config, found, settings, folder)
    if folder is None:
        return
    gone = [file for file in names if not (folder / file).is_file()]
    if gone:
        raise SettingsError(f"the model {name} has no {shown(gone[0])}, which its index names: fetch it again")
    if settings.use_safetensors:
        checkpoint.check(name, folder, names, quantized=bool(config.get("quantization_config")))


def fetched(path: str, hub: Mapping[str, str | bool]) -> Path:
    """The folder of the cache that a hub model was fetched to; its name is the commit."""
    return Path(str(cached_file(path, "config.json", **hub))).parent


@contextlib.contextmanager
def code_kept_out(settings: Settings) -> Iterator[None]:
    """Inside, no code that lies beside a model is imported, whatever a caller in a library says to transformers.

    lm-eval's RULER and BABILong tasks load tokenizers with trust_remote_code=True: that is not theirs to decide.
    """
    if settings.trust_remote_code:
        yield
        return

    def refuse(repository: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        raise SettingsError(f"{module} of {repository} was about to run: that takes --trust-remote-code")

    # What every dynamic class of transformers goes through, before the file is copied or looked at.
    with mock.patch("transformers.dynamic_module_utils.get_cached_module_file", refuse):
        yield


def _check_kind(name: str, config: Content) -> None:
    kind = config.get("model_type")
    if kind == MODEL_TYPE:
        raise SettingsError(
            f"the model {name} was trained with gates (sa_patch.gate), and sa-eval compares variants on plain models: "
            "load it with sa_patch.from_pretrained, and give that to lm-eval (HFLM(pretrained=model, batch_size=1))"
        )
    if not config.get("auto_map"):  # with it, and trusted, the model's own code knows
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            raise SettingsError(
                f"config.json of the model {name} has the model_type {shown(kind)}, unknown to this transformers"
            )
        if CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise SettingsError(
                f"config.json of the model {name} describes a {kind}, which is no causal language model"
            )
    for layers in _values(config, LAYER_KEYS):
        if isinstance(layers, int) and layers > MOST_LAYERS:
            raise SettingsError(f"config.json of the model {name} asks for {shown(layers)} layers: that is no model")


def _read_json(path: str, file: str, hub: Mapping[str, str | bool]) -> Content | None:
    flags = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    location = cached_file(path, file, **hub, **flags)
    if location is None:
        return None
    try:
        content = json.loads(Path(location).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise SettingsError(f"{file} is not valid JSON (line {error.lineno}): fetch it again") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{file} is not valid JSON: fetch it again") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{file} must hold a JSON object, found a {type(content).__name__}")
    return content


def _code_in(content: Content | None) -> Iterator[Any]:
    """Classes to import from the repository, and attention kernels to fetch from another one."""
    yield from (value for value in _values(content, ("auto_map",)) if value)
    implementations = ("attn_implementation", "_attn_implementation", "experts_implementation")
    for value in _values(content, implementations):
        names = value.values() if isinstance(value, dict) else (value,)
        yield from (name for name in names if isinstance(name, str) and "/" in name)


def _values(content: Any, keys: tuple[str, ...]) -> Iterator[Any]:
    """The values of these keys at any depth: configs nest."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key in keys:
                yield value
            yield from _values(value, keys)


def _named(name: str, config: Content, found: Files, settings: Settings, folder: Path | None) -> list[str]:
    """The weight files that transformers would read."""
    single, index = (SAFE, SAFE_INDEX) if settings.use_safetensors else (PICKLED, PICKLED_INDEX)
    explicit = config.get("transformers_weights")
    if explicit is not None:
        if not isinstance(explicit, str) or not _inside(explicit, (".safetensors",)):
            raise SettingsError(
                f"config.json of the model {name} takes its weights from {shown(explicit)}: only a safetensors file "
                "inside the folder can be read that way"
            )
        return [explicit]
    if folder is not None and (folder / single).is_file():
        return [single]
    if found[index] is not None:
        return _in_index(name, index, found[index] or {}, (".safetensors",) if settings.use_safetensors else (".bin",))
    if folder is None:
        return []
    raise SettingsError(f"the model {name} has no {single} and no {index}: {_way_out(settings, folder)}")


def _way_out(settings: Settings, folder: Path) -> str:
    if not settings.use_safetensors:
        return "leave out --no-use-safetensors to read safetensors"
    if (folder / PICKLED).is_file() or (folder / PICKLED_INDEX).is_file():
        return f"its weights are pickled ({PICKLED}), which are read only with --no-use-safetensors, as tensors alone"
    return "save it with transformers' save_pretrained"


def _in_index(name: str, file: str, index: Content, endings: tuple[str, ...]) -> list[str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(index.get("metadata"), dict):
        raise SettingsError(f"{file} of the model {name} has no metadata or no weight_map: fetch it again")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _inside(shard, endings):
            raise SettingsError(
                f"{file} of the model {name} names {shown(shard)}: only {endings[0]} files inside the folder are read"
            )
    return sorted(set(weight_map.values()))


def _inside(file: str, endings: tuple[str, ...]) -> bool:
    path = PurePosixPath(file.replace("\\", "/"))
    return file.endswith(endings) and not path.is_absolute() and ".." not in path.parts and ":" not in file
