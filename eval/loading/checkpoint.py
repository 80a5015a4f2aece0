"""The headers of a checkpoint: every tensor there once, in floats, and experts without a gap.

transformers casts whole numbers to weights, and stacks the experts it finds in the order of their numbers, so that a
gap silently moves the later ones up. Reads no weights. Imports safetensors only inside functions.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sa_eval.messages import shown
from sa_eval.settings.values import SettingsError

EXPERT = re.compile(r"(?P<block>.*\.experts)\.(?P<index>\d{1,9})\.(?P<part>.*)", re.DOTALL)
NO_FLOATS = ("I", "U", "BOOL", "C")  # safetensors' names of integers, booleans and complex numbers

Shapes = dict[str, list[int]]


def check(name: str, folder: Path, files: list[str], *, quantized: bool) -> None:
    """Refuse damaged files, tensors in two files, weights that are no floats, and experts that do not line up."""
    shapes: Shapes = {}
    for file in files:
        try:
            found = _header(folder / file)
        except (SafetensorError, OSError) as error:
            raise SettingsError(f"{file} of the model {name} is damaged or cut off: fetch it again") from error
        for key, (kind, shape) in found.items():
            if key in shapes:
                raise SettingsError(f"tensor {shown(key)} of the model {name} is in two files: which one counts?")
            if not quantized and key.endswith(".weight") and kind.startswith(NO_FLOATS):
                raise SettingsError(f"tensor {shown(key)} of the model {name} holds {kind}, not weights")
            shapes[key] = shape
    _check_experts(name, shapes)


def _header(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Kind and shape of every tensor."""
    with safe_open(file, framework="pt") as opened:
        entries = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - the file is no dictionary
        return {key: (entry.get_dtype(), entry.get_shape()) for key, entry in entries.items()}


def _check_experts(name: str, shapes: Shapes) -> None:
    blocks: dict[str, dict[str, dict[int, list[int]]]] = defaultdict(lambda: defaultdict(dict))
    for key, shape in shapes.items():
        if match := EXPERT.fullmatch(key):
            blocks[match["block"]][match["part"]][int(match["index"])] = shape
    for block, parts in blocks.items():
        count = max(map(len, parts.values()))
        for part, experts in parts.items():
            for index in range(count):
                tensor = shown(f"{block}.{index}.{part}")
                if index not in experts:
                    raise SettingsError(
                        f"the checkpoint of the model {name} lacks {tensor} beside its {count} experts: fetch it again"
                    )
                if experts[index] != experts[0]:
                    raise SettingsError(
                        f"tensor {tensor} of the model {name} is {experts[index]}, expert 0 has {experts[0]}: "
                        "experts must be alike"
                    )
