"""A loaded model is sound: all its numbers come from the checkpoint, are numbers, and fit its tokenizer.

transformers fills in what a checkpoint lacks with random numbers and only warns. An evaluation of those is a wrong
number that looks like a right one, so everything here is an error. Imports torch only inside functions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from sa_eval.messages import shown
from sa_eval.settings.values import SettingsError

SENTENCE = "The quick brown fox jumps over the lazy dog."
MOST_NAMES = 3


def check_report(name: str, report: Mapping[str, Any], *, gguf: bool = False) -> None:
    """`report` is what from_pretrained(output_loading_info=True) says; tied weights are not missing there."""
    for key, found, wanted in sorted(report["mismatched_keys"]):
        tensor = f"tensor {shown(key)} of the model {name} is {list(found)} in the checkpoint and {list(wanted)}"
        if gguf:
            raise SettingsError(
                f"{tensor} by what transformers reads of the GGUF file's sizes, which is not all of them: use the "
                "safetensors checkpoint"
            )
        raise SettingsError(f"{tensor} after config.json: they belong to different models")
    missing, unexpected = report["missing_keys"], report["unexpected_keys"]
    found = [f"lacks {_names(missing)} (they would be random numbers)"] if missing else []
    found += [f"holds {_names(unexpected)} (the model has no place for them)"] if unexpected else []
    if found or report["error_msgs"]:
        what = " and ".join(found) or shown(report["error_msgs"][0])
        raise SettingsError(
            f"the checkpoint of the model {name} {what}: it is damaged or belongs to another "
            f"{'architecture' if gguf else 'config.json'}"
        )


def check_weights(name: str, model: Any) -> None:
    """One pass over the weights, without copies: 0.7 s per billion bfloat16 numbers on one core, less than loading.

    Weights that accelerate keeps on disk are not here; quantised formats have their floats in their scales.
    """
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for key, parameter in model.named_parameters():
        values = parameter.detach()
        values = values.to_local() if hasattr(values, "to_local") else values  # this process's share of it
        if values.dtype not in kinds or values.is_meta or not values.numel():
            continue
        low, high = torch.aminmax(values)  # both are NaN when one number is
        if not bool(torch.isfinite(torch.stack((low, high))).all()):
            raise SettingsError(
                f"tensor {shown(key)} of the model {name} holds NaN or infinity in {_kind(parameter)}: the "
                "checkpoint is damaged, or its numbers do not fit this dtype (see --dtype)"
            )
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model.config, "tie_word_embeddings", False) and getattr(model, "_tied_weights_keys", None)
    if tied and head is not None and not head.weight.is_meta and head.weight is not embedding.weight:
        raise SettingsError(
            f"config.json of the model {name} ties the output to the embeddings, but the checkpoint holds another "
            "output (lm_head): remove one of the two"
        )


def check_reading(name: str, model: Any, tokenizer: Any, device: Any) -> None:
    """The model reads one sentence: every token has an embedding and every logit is a number."""
    ids = tokenizer(SENTENCE)["input_ids"]
    if not ids or set(ids) == {tokenizer.unk_token_id}:
        raise SettingsError(f"the tokenizer of the model {name} knows no word: its files are missing (tokenizer.json)")
    rows, largest = model.get_input_embeddings().weight.shape[0], max(*ids, tokenizer.pad_token_id)
    if largest >= rows:
        raise SettingsError(
            f"the tokenizer of the model {name} gives token {largest}, the model has {rows} embeddings: they belong to "
            "different models"
        )
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits
    if bool(torch.log_softmax(logits.float(), dim=-1).isnan().any()):
        raise SettingsError(
            f"the model {name} answers a plain sentence with NaN in {_kind(logits)}: config.json is wrong, or its "
            "numbers do not fit this dtype (see --dtype)"
        )


def _names(keys: Collection[str]) -> str:
    first = sorted(keys)[:MOST_NAMES]
    more = f" and {len(keys) - len(first)} more" if len(keys) > len(first) else ""
    return ", ".join(shown(key) for key in first) + more


def _kind(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
