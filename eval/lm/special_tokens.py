"""What a tokenizer puts around every text: a begin-of-text token before it, with some tokenizers an end after it.

A prompt goes on, so it must not carry the end: the model would read it as the end of the document.
"""

from __future__ import annotations

from typing import Any

from sa_eval.messages import shown
from sa_eval.settings.values import SettingsError

SAMPLE = "text"


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens before and after a text's own.

    Raises:
        SettingsError: for a tokenizer that does not leave a text's own tokens as they are between special ones.
    """
    plain = list(tokenizer(SAMPLE, add_special_tokens=False)["input_ids"])
    marked = list(tokenizer(SAMPLE)["input_ids"])
    for start in range(len(marked) - len(plain) + 1):
        if plain and marked[start : start + len(plain)] == plain:
            return marked[:start], marked[start + len(plain) :]
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    raise SettingsError(
        f"the tokenizer {shown(name)} gives {marked} for {SAMPLE!r} and {plain} without special tokens: which of its "
        "tokens come before and after a text cannot be told, so prompts cannot be made from it"
    )
