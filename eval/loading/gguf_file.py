"""A GGUF file as a model: what its header says, and whether transformers took all of it.

transformers unpacks the weights to floats. It skips what it has no place for (scaled position embeddings, biases)
without a word, and an evaluation of the rest would be of another model: that is refused here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GgufConfig

from sa_eval.messages import one_line, shown
from sa_eval.settings.config import SettingsError

ENDING = ".gguf"


@dataclass(frozen=True)
class Header:
    """Attributes:
    architecture: the family's name in GGUF, as in `qwen3moe`.
    quantization: number of tensors by their format, as in {"Q4_1": 210, "F32": 61}.
    numbers: how many weights the tensors hold together.
    """

    architecture: str
    quantization: dict[str, int]
    numbers: int


def read(name: str, file: Path) -> Header:
    """The header, without the weights.

    Raises:
        SettingsError: no package to read it with, damaged, a part of several files, or scaled position embeddings.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise SettingsError(
            f"{file.name} is a GGUF file, which is read with the package gguf: pip install 'sa-patch[eval,gguf]'"
        ) from error
    try:
        reader = GGUFReader(file)
        fields = {key: field.contents() for key, field in reader.fields.items() if "tokenizer." not in key}
        architecture = str(fields["general.architecture"])
    except Exception as error:  # whatever a damaged file makes of the parser
        raise SettingsError(
            f"{file.name} is damaged, cut off or no GGUF file: fetch it again ({one_line(error)})"
        ) from error
    if int(fields.get("split.count") or 1) > 1:
        raise SettingsError(
            f"{file.name} is one of {fields['split.count']} parts: join them first (llama.cpp's llama-gguf-split "
            "--merge)"
        )
    _refuse_scaled_positions(name, fields, [tensor.name for tensor in reader.tensors])
    formats = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    return Header(architecture, dict(formats), sum(int(tensor.n_elements) for tensor in reader.tensors))


def unpacked() -> Any:
    """Weights as floats for every architecture; from_pretrained's `quantization_config`.

    Otherwise transformers may keep some of them packed and fetch kernels from the hub to compute with.
    """
    return GgufConfig(dequantize=True)


def check_nothing_skipped(name: str, header: Header, model: Any) -> None:
    """Every number of the file is in the model; what the model has beyond them, from_pretrained's report tells."""
    taken = sum(parameter.numel() for parameter in model.parameters())  # tied weights count once, as in the file
    if header.numbers > taken:
        raise SettingsError(
            f"the GGUF file of the model {name} holds {header.numbers:,} numbers, transformers read {taken:,} of them "
            f"into {type(model).__name__}: it would be another model; use the safetensors checkpoint"
        )


def _refuse_scaled_positions(name: str, fields: Mapping[str, object], tensors: list[str]) -> None:
    scaled = [
        key
        for key, value in fields.items()
        if (key.endswith(".rope.scaling.type") and value != "none")
        or (key.endswith((".rope.scaling.factor", ".rope.scale_linear")) and value != 1)
    ]
    scaled += [tensor for tensor in tensors if tensor.startswith("rope_")]
    if scaled:
        raise SettingsError(
            f"the GGUF file of the model {name} scales its position embeddings ({shown(scaled[0])}), which "
            "transformers does not read from GGUF: use the safetensors checkpoint"
        )
