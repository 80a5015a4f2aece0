"""What speed is measured on: a loaded model or one of its shape with random weights, and the prompt's tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sa_eval import environment
from sa_eval.loading import models, sources
from sa_eval.messages import one_line, shown
from sa_eval.records.types import Facts
from sa_eval.settings import presets
from sa_eval.settings.values import SettingsError
from sa_eval.speed.settings import SpeedSettings
from sa_eval.tasks import document

SHAPE = (
    *("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "vocab_size", "max_position_embeddings"),
)


@dataclass(frozen=True)
class Subject:
    """What is measured: `prompt` has as many tokens as the longest length; shorter ones take its beginning."""

    model: Any
    prompt: list[int]
    identity: Facts


def prepare(asked: SpeedSettings) -> Subject:
    """The model and its prompt.

    Raises:
        SettingsError: for a model that cannot be had, or lengths beyond the positions of one with its own weights.
    """
    subject = _random(asked) if asked.random_weights else _loaded(asked)
    weights = sum(tensor.nbytes for tensor in [*subject.model.parameters(), *subject.model.buffers()])
    config = subject.model.config.get_text_config()
    shape = {name: getattr(config, name) for name in SHAPE if getattr(config, name, None) is not None}
    return Subject(subject.model, subject.prompt, {**subject.identity, "weights_gib": weights / 2**30, "shape": shape})


def _loaded(asked: SpeedSettings) -> Subject:
    loaded = models.load(sources.find(asked.of.model), asked.of)
    limit = models.max_tokens(loaded.model)
    if limit is not None and asked.longest > limit:
        raise SettingsError(
            f"length {max(asked.of.lengths)} and {asked.new_tokens} new tokens are longer than the model's {limit} "
            "positions: ask for less, or measure its shape with more positions (--random-weights)"
        )
    identity = {**loaded.identity.to_dict(), "weights": "the checkpoint's", "prompt": "text of the offline suite"}
    return Subject(loaded.model, _text(loaded.tokenizer, max(asked.of.lengths)), identity)


def _random(asked: SpeedSettings) -> Subject:
    settings = asked.of
    torch.set_num_threads(settings.threads or min(torch.get_num_threads(), environment.allowed_cpus()))
    device = models.pick_device(settings)
    config = shape_file(asked.shape) if asked.shape else _shape_of(asked)
    limit = config.get_text_config()
    limit.max_position_embeddings = max(asked.longest, getattr(limit, "max_position_embeddings", 0) or 0)
    dtype = models.pick_dtype(settings, device)
    dtype = (config.dtype or torch.bfloat16) if dtype == "auto" else getattr(torch, dtype)
    torch.manual_seed(0)
    try:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    except (ValueError, TypeError, RuntimeError) as error:
        raise SettingsError(f"cannot make a model of the shape {shown(asked.name)}: {one_line(error)}") from error
    tokens = torch.randint(
        0, limit.vocab_size, (max(settings.lengths),), generator=torch.Generator().manual_seed(0)
    ).tolist()
    identity = {
        "name": Path(asked.name).stem,
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": limit.num_hidden_layers,
        "weights": "random",
        "prompt": "random tokens",
    }
    return Subject(model, tokens, identity)


def _shape_of(asked: SpeedSettings) -> Any:
    """The config of --model, without its weights."""
    return models.empty_model(sources.find(asked.of.model), asked.of).config


def shape_file(given: str) -> Any:
    """The config in a file; classes of transformers only, no code that the file may name."""
    file = presets.shape_path(given)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        kind = values.pop("model_type")
        values.pop("auto_map", None)
        return AutoConfig.for_model(kind, **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SettingsError(
            f"shape {shown(given)} cannot be used: {one_line(error)}; it must be the config.json of a causal language "
            f"model, or the name of a shipped shape: {', '.join(presets.shapes())}"
        ) from error


def _text(tokenizer: Any, length: int) -> list[int]:
    """Tokens of the offline suite's documents, one after the other."""
    tokens: list[int] = []
    index = 0
    while len(tokens) < length:
        text = document("frequent_words", lambda text: len(text.split()), 400, 0, index).prompt
        tokens += tokenizer(text, add_special_tokens=False)["input_ids"]
        index += 1
    return tokens[:length]
