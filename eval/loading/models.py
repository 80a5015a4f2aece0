"""From a name to a model with its tokenizer and an identity that a reader can check.

A bundled or local model never touches the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sa_eval import environment
from sa_eval.loading import gguf_file, model_files, soundness, tensor_split, weights
from sa_eval.loading.identity import ModelIdentity
from sa_eval.loading.model_files import Content
from sa_eval.loading.sources import Location, Source, location_of
from sa_eval.messages import one_line, shown
from sa_eval.settings.config import Settings, SettingsError

MOST_ROWS = 16  # of a batch
CPU_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Loaded:
    model: Any
    tokenizer: Any
    source: Source
    identity: ModelIdentity


def load(source: Source, settings: Settings) -> Loaded:
    """Load weights and tokenizer once for the whole run; refuse a model whose scores would mean nothing.

    Raises:
        SettingsError: whatever is wrong with the files, in one message; nothing is written.
    """
    torch.set_num_threads(settings.threads or min(torch.get_num_threads(), environment.allowed_cpus()))
    device = pick_device(settings)
    header = None if source.file is None else gguf_file.read(source.name, source.file)
    with location_of(source, settings) as location, _as_one_message(f"cannot load the model {shown(settings.model)}"):
        found = _checked_files(source, location, settings)
        model_files.check_weights(source.name, source.folder, found, settings)
        model = _load_weights(source, location, settings, device, found["config.json"] or {})
        commit = None
        if not source.local:
            snapshot = model_files.fetched(location.path, location.options)
            model_files.check_weights(source.name, snapshot, found, settings)
            commit = snapshot.name
        if header is not None:
            gguf_file.check_nothing_skipped(source.name, header, model)
        soundness.check_weights(source.name, model)
        with _as_one_message(f"cannot load the tokenizer of the model {shown(settings.model)}"):
            tokenizer = _load_tokenizer(location, settings)
        if settings.device_map is None and not settings.tp:
            model = model.to(device)
        soundness.check_reading(source.name, model.eval(), tokenizer, input_device(model))
        return Loaded(model, tokenizer, source, identity(source, model, header, commit))


def _checked_files(source: Source, location: Location, settings: Settings) -> model_files.Files:
    """The model's JSON files by name; a GGUF file holds its config itself."""
    if source.file is None:
        return model_files.check_code(source.name, location.path, location.options, settings)
    config = AutoConfig.from_pretrained(location.path, **location.options).to_dict()
    return model_files.check_config(source.name, config)


def _load_tokenizer(location: Location, settings: Settings) -> Any:
    trusted = settings.trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(location.path, trust_remote_code=trusted, **location.options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _load_weights(source: Source, location: Location, settings: Settings, device: str, config: Content) -> Any:
    options: dict[str, Any] = dict(location.options)
    if source.file is not None:
        options["quantization_config"] = gguf_file.unpacked()
    if settings.device_map is not None:
        options["device_map"] = settings.device_map
    if settings.tp:
        options["distributed_config"] = tensor_split.plan(source.name, config)
    dtype = pick_dtype(settings, device)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        location.path,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        trust_remote_code=settings.trust_remote_code,
        use_safetensors=settings.use_safetensors,
        weights_only=True,  # a pickle may hold tensors, never code
        ignore_mismatched_sizes=True,  # or the error would not say which tensor
        output_loading_info=True,
        **options,
    )
    model, report = loaded
    soundness.check_report(source.name, report, gguf=source.file is not None)
    return model


def empty_model(source: Source, settings: Settings) -> Any:
    """The model's shape without weights (meta device): enough to count pairs and bytes, for --dry-run."""
    with location_of(source, settings) as location, _as_one_message(f"cannot read the model {shown(settings.model)}"):
        trusted = settings.trust_remote_code
        if source.file is None:
            model_files.check_code(source.name, location.path, location.options, settings)
        else:
            gguf_file.read(source.name, source.file)
        config = AutoConfig.from_pretrained(location.path, trust_remote_code=trusted, **location.options)
        model_files.check_config(source.name, config.to_dict())
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trusted).eval()


@contextlib.contextmanager
def _as_one_message(what: str) -> Iterator[None]:
    """Whatever a library says about a broken model is one message for the user; the cause stays attached."""
    try:
        yield
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(f"{what}: {one_line(error)}") from error


def pick_device(settings: Settings) -> str:
    if settings.device != "auto":
        try:
            device = torch.device(settings.device)
        except RuntimeError as error:
            raise SettingsError(f"device {settings.device!r} is not a torch device: try cpu, cuda or cuda:1") from error
        if device.type == "meta":
            raise SettingsError("device 'meta' holds no numbers: use --dry-run to see what would run")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise SettingsError(
                f"device {settings.device!r} was asked for, but torch sees no CUDA device: use --device cpu"
            )
        return settings.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def input_device(model: Any) -> Any:
    """Where a model's tokens go: its own device, or the CPU where accelerate fetches the embeddings from elsewhere."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


def pick_dtype(settings: Settings, device: str) -> str:
    """auto is the checkpoint's dtype; on a CPU float32, because half precision is slow there."""
    on_cpu = device.partition(":")[0] == "cpu" and settings.device_map is None  # accelerate says cpu:0
    return "float32" if settings.dtype == "auto" and on_cpu else settings.dtype


def pick_batch_size(settings: Settings, device: Any, tokens: int) -> int:
    """Documents per forward pass, where prompts have about so many tokens.

    On a CPU as many as hold CPU_BATCH_TOKENS, and two at least: a rule of thumb from small models. Very small batches
    leave cores idle between layers; what large ones compute there does not fit the caches.
    """
    if settings.batch_size is not None:
        return settings.batch_size
    if not str(device).startswith("cpu"):
        return MOST_ROWS
    return max(2, min(MOST_ROWS, CPU_BATCH_TOKENS // max(1, tokens)))


def max_tokens(model: Any) -> int | None:
    """The longest sequence the model's positions allow, if its config says so."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return next(
        (
            getattr(config, name)
            for name in ("max_position_embeddings", "n_positions", "n_ctx")
            if getattr(config, name, None)
        ),
        None,
    )


def identity(
    source: Source, model: Any, header: gguf_file.Header | None = None, commit: str | None = None
) -> ModelIdentity:
    """What was evaluated; `header` is that of the GGUF file it came from, `commit` that of the hub's repository."""
    found = ModelIdentity(
        name=source.name,
        model_class=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        layers=model.config.get_text_config().num_hidden_layers,
    )
    if not source.local:
        return replace(found, hub_id=source.path, revision=commit)
    if source.file is None or header is None:
        return replace(found, **weights.identity(weights.files_of(Path(source.path))))
    origin = weights.identity([source.file])
    return replace(found, file=source.file.name, quantization=header.quantization, **origin)
