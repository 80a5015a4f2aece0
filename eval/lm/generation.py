"""What belongs to generating text: the options of a task, where an answer begins after thinking, where and why it
stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from sa_eval.settings.values import SettingsError

DEFAULT_NEW_TOKENS = 256
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SPARE_TOKENS = 2  # a stop string may begin inside one token and end inside another


def generation_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """lm-eval's generation arguments as `generate` takes them: greedy unless the task asks to sample."""
    options = dict(arguments)
    lengths = [options.pop(name, None) for name in LENGTH_NAMES]
    until = options.pop("until", None) or []
    temperature = float(options.pop("temperature", 0.0) or 0.0)
    options["do_sample"] = bool(options.get("do_sample", temperature > 0))
    if options["do_sample"] and temperature > 0:
        options["temperature"] = temperature
    return {
        **options,
        "until": [until] if isinstance(until, str) else list(until),
        "max_new_tokens": int(next((value for value in lengths if value is not None), DEFAULT_NEW_TOKENS)),
    }


class Thinking:
    """The end of a model's thinking; only what comes after its last occurrence is the answer.

    Args:
        end: its text, or the number of its token, as lm-eval's `think_end_token`.

    Raises:
        SettingsError: for a number that is no token of the tokenizer.
    """

    def __init__(self, tokenizer: Any, end: str | int) -> None:
        self._tokenizer = tokenizer
        if isinstance(end, int):
            if not 0 <= end < len(tokenizer):
                raise SettingsError(
                    f"think_end_token={end} is taken for a token's number, as in lm-eval, and the tokenizer has "
                    f"{len(tokenizer)} tokens: give a number below that, or the token's text"
                )
            self._token, self._text, self.num_tokens = end, None, 1
        else:
            ids = tokenizer.encode(end, add_special_tokens=False)
            self._token, self._text, self.num_tokens = ids[0] if len(ids) == 1 else None, end, len(ids)

    def has_ended(self, ids: list[int]) -> bool:
        return self._token in ids or (self._text is not None and self._text in self._tokenizer.decode(ids))

    def answer(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text after the thinking, without spaces before it; all of it where the thinking did not end."""
        if self._token in ids:
            ids = ids[len(ids) - ids[::-1].index(self._token) :]
        text = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return (text if self._text is None else text.split(self._text)[-1]).lstrip()


class StopStrings(StoppingCriteria):
    """Ends each row at its own stop string, looked for in the answer only, not in the thinking before it.

    lm-eval's criterion decodes once per stop string, this one once per step.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt_len: int, thinking: Thinking | None) -> None:
        self.tokenizer, self.stops, self.prompt_len, self.thinking = tokenizer, stops, prompt_len, thinking
        sizes = [len(tokenizer.encode(stop, add_special_tokens=False)) for stop in stops]
        self.look_back = SPARE_TOKENS + max(*sizes, thinking.num_tokens if thinking else 0)
        self.answer_from: dict[int, int] = {}  # by row, once its thinking has ended
        self.done: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        new = input_ids[:, self.prompt_len :]
        if self.thinking is None:
            texts = self.tokenizer.batch_decode(new[:, -self.look_back :])
        else:
            texts = [self._answer(self.thinking, row, ids) for row, ids in enumerate(new.tolist())]
        now = torch.tensor([any(stop in text for stop in self.stops) for text in texts], device=input_ids.device)
        self.done = now if self.done is None else self.done | now
        return self.done

    def _answer(self, thinking: Thinking, row: int, ids: list[int]) -> str:
        """The answer of a row so far, empty while it thinks."""
        start = self.answer_from.get(row)
        if start is None:
            start = max(0, len(ids) - self.look_back)
            if not thinking.has_ended(ids[start:]):
                return ""
            self.answer_from[row] = start
        return thinking.answer(ids[start:], skip_special_tokens=False)


def cut_off(new: torch.Tensor, limit: int, ends: Sequence[int] | None, stopped: torch.Tensor | None) -> list[bool]:
    """Whether the limit of new tokens ended each row, and neither an end of text nor a stop string did.

    Args:
        new: [rows, tokens], the generated ones; what `generate` fills up a finished row with lies behind its end.
        ends: the tokens that end a text.
        stopped: [rows], where a stop string was found.
    """
    if new.shape[1] < limit:
        return [False] * len(new)
    ended = torch.isin(new, torch.tensor(ends or [], dtype=new.dtype, device=new.device)).any(dim=1)
    return (~(ended if stopped is None else ended | stopped)).tolist()


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in stops:
        text = text.split(stop)[0]
    return text
