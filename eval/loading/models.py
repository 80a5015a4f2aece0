"""Owns loading: from a name to a model with its tokenizer and an identity that a reader can check.

A bundled or local model never touches the network; a hub id does what transformers does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sa_eval import environment
from sa_eval.loading import model_files, soundness, weights
from sa_eval.messages import one_line, shown
from sa_eval.processes import tensor_parallel
from sa_eval.settings.config import Settings, SettingsError, nearest

BUNDLED = ("qwen3-tiny", "qwen3-moe-tiny")


@dataclass(frozen=True)
class Source:
    """Where a model comes from: `path` is a folder or a hub id."""

    name: str
    path: str
    local: bool


@dataclass(frozen=True)
class Loaded:
    model: Any
    tokenizer: Any
    source: Source
    identity: dict[str, Any]


def find(name: str) -> Source:
    """Resolve a bundled name, a folder or a hub id; refuse what cannot be any of them."""
    if name in BUNDLED:
        folder = Path(str(resources.files("sa_eval"))) / "assets" / name
        if not (folder / "config.json").is_file():
            raise SettingsError(
                f"the bundled model {name} is not installed: {folder} has no config.json; reinstall the package"
            )
        return Source(name, str(folder), local=True)
    folder = _folder(name)
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise SettingsError(f"model {name!r} is a folder without config.json: point to a saved transformers model")
        return Source(folder.resolve().name, str(folder), local=True)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise SettingsError(
            f"model {shown(name)} is neither a bundled model ({', '.join(BUNDLED)}), an existing folder "
            f"nor a hub id (owner/name); {nearest(name, BUNDLED)}"
        )
    return Source(name.split("/")[-1], name, local=False)


def _folder(name: str) -> Path | None:
    """The folder of this name, None when there is none or the name cannot be a path."""
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, an unknown user
        return None


def load_tokenizer(source: Source, settings: Settings) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        source.path, trust_remote_code=settings.trust_remote_code, **_hub_options(source, settings)
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load(source: Source, settings: Settings) -> Loaded:
    """Load weights and tokenizer once for the whole run; refuse a model whose scores would mean nothing.

    Raises:
        SettingsError: whatever is wrong with the files, in one message; nothing is written.
    """
    import torch

    torch.set_num_threads(settings.threads or min(torch.get_num_threads(), environment.allowed_cpus()))
    device = pick_device(settings)
    with _told(f"cannot load the model {shown(settings.model)}"):
        hub = _hub_options(source, settings)
        found = model_files.check_code(source.name, source.path, hub, settings)
        model_files.check_weights(source.name, Path(source.path) if source.local else None, found, settings)
        model = _load_weights(source, settings, device, found["config.json"] or {})
        if not source.local:
            model_files.check_weights(source.name, model_files.fetched(source.path, hub), found, settings)
        soundness.check_weights(source.name, model)
        with _told(f"cannot load the tokenizer of the model {shown(settings.model)}"):
            tokenizer = load_tokenizer(source, settings)
        if settings.device_map is None and not settings.tp:
            model = model.to(device)
        soundness.check_reading(source.name, model.eval(), tokenizer, input_device(model))
        return Loaded(model, tokenizer, source, identity(source, model))


def _load_weights(source: Source, settings: Settings, device: str, config: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    options = _hub_options(source, settings)
    if settings.device_map is not None:
        options["device_map"] = settings.device_map
    if settings.tp:
        options["distributed_config"] = tensor_parallel.plan(source.name, config)
    dtype = pick_dtype(settings, device)
    model, report = AutoModelForCausalLM.from_pretrained(
        source.path,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        trust_remote_code=settings.trust_remote_code,
        use_safetensors=settings.use_safetensors,
        weights_only=True,  # a pickle may hold tensors, never code
        ignore_mismatched_sizes=True,  # or the error would not say which tensor
        output_loading_info=True,
        **options,
    )
    soundness.check_report(source.name, report)
    return model


def empty_model(source: Source, settings: Settings) -> Any:
    """The model's shape without weights (meta device): enough to count pairs and bytes, for --dry-run."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with _told(f"cannot read the model {shown(settings.model)}"):
        hub, trusted = _hub_options(source, settings), settings.trust_remote_code
        model_files.check_code(source.name, source.path, hub, settings)
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=trusted, **hub)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trusted).eval()


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever a library says about a broken model is one message for the user; the cause stays attached."""
    try:
        yield
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(f"{what}: {one_line(error)}") from error


def pick_device(settings: Settings) -> str:
    import torch

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
    import torch

    return torch.device("cpu") if model.device.type == "meta" else model.device


def pick_dtype(settings: Settings, device: str) -> str:
    """auto is the checkpoint's dtype; on a CPU float32, because half precision is slow there."""
    on_cpu = device.partition(":")[0] == "cpu" and settings.device_map is None  # accelerate says cpu:0
    return "float32" if settings.dtype == "auto" and on_cpu else settings.dtype


def pick_batch_size(settings: Settings, device: Any) -> int:
    """On a CPU prefill is compute-bound: two rows of 1,024 tokens take 20 % less time per row than sixteen."""
    return settings.batch_size or (2 if str(device).startswith("cpu") else 16)


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


def identity(source: Source, model: Any) -> dict[str, Any]:
    """What was evaluated, so that somebody else can check they hold the same weights."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    found = {
        "name": source.name,
        "class": type(model).__name__,
        "parameters": parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": model.config.get_text_config().num_hidden_layers,
    }
    if not source.local:
        return {**found, "hub_id": source.path, "revision": getattr(model.config, "_commit_hash", None)}
    return {**found, **weights.identity(Path(source.path))}


def _hub_options(source: Source, settings: Settings) -> dict[str, Any]:
    if not source.local:
        return {"revision": settings.revision or "main"}
    if settings.revision is not None:
        raise SettingsError(f"revision {shown(settings.revision)} is for hub models; {source.name} is on this machine")
    return {"local_files_only": True}
