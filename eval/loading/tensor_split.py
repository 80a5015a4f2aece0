"""How transformers splits one model over the processes of a run (tensor parallel)."""

from __future__ import annotations

from typing import Any

from torch import distributed
from transformers.distributed.configuration_utils import DistributedConfig

from sa_eval.loading.model_files import Content
from sa_eval.settings.config import SettingsError


def plan(name: str, config: Content) -> Any:
    """The model's own plan, over all processes.

    Args:
        config: what config.json of the model says.

    Raises:
        SettingsError: heads that cannot be shared out evenly.
    """
    world = distributed.get_world_size()
    text = config.get("text_config", config)
    heads = text.get("num_key_value_heads") or text.get("num_attention_heads")
    if heads is not None and heads % world:
        raise SettingsError(
            f"the model {name} has {heads} key heads, which {world} processes cannot share evenly: launch a number of "
            f"processes that divides {heads}"
        )
    return DistributedConfig(tp_plan="auto")
