"""What a model's layers hand to attention, as `sa_patch.tune` takes it; and the threads that it may use."""

from __future__ import annotations

from typing import TypedDict

import torch

from sa_eval import environment
from sa_eval.loading import models, sources
from sa_eval.settings.config import settings_from
from sa_eval.speed.measured_model import shape_file


class Tensors(TypedDict, total=False):
    """What is not known is not there: `tune` has its own defaults."""

    dtype: str
    heads: int
    kv_heads: int
    head_dim: int


def of_model(model: str | None, shape: str | None, device: str, dtype: str) -> Tensors:
    """Heads, head_dim and dtype of the model, or of the shape, that was named, without its weights."""
    asked: Tensors = {} if dtype == "auto" else {"dtype": dtype}
    if shape is not None:
        config = shape_file(shape)
    elif model is not None:
        config = models.empty_model(sources.find(model), settings_from({"model": model})).config
    else:
        return asked
    config = config.get_text_config()
    heads = config.num_attention_heads
    own = str(getattr(config, "dtype", None) or "").removeprefix("torch.")
    on_cpu = device.partition(":")[0] == "cpu" or (device == "auto" and not torch.cuda.is_available())
    known: Tensors = {"dtype": own} if own in ("bfloat16", "float16") and not on_cpu else {}
    return {
        **known,
        **asked,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
    }


def use_threads(threads: int | None) -> None:
    """torch's CPU threads; None: as many as this process may use."""
    torch.set_num_threads(threads or min(torch.get_num_threads(), environment.allowed_cpus()))
