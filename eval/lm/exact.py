"""How a model is asked: lm-eval's HFLM with true lengths, cheap scoring and no silent truncation.

Rows of log-likelihood requests are batched by exact length, so there is no padding that a sparse pattern could count as
tokens, and identical rows (one context, several one-token choices) run once. Only the scored positions get logits.
Generation is left-padded and always carries its attention mask. What a text's tokens are is in tokens.py.
"""

from __future__ import annotations

import contextlib
import json
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import StoppingCriteriaList

from sa_eval.lm.generation import StopStrings, Thinking, cut_at, cut_off, generation_options
from sa_eval.lm.stock import Instance
from sa_eval.lm.tokens import ExactTokens
from sa_eval.loading import models


class ExactRequests(ExactTokens):
    """HFLM, however its model came to be, for patches that must know every row's true length.

    Attributes:
        cut_answers: (task, document) -> whether the limit of new tokens cut an answer to it, of those generated so far.
    """

    def __init__(self, *arguments: Any, progress: Callable[[int], object] | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._progress = progress or (lambda count: None)
        self.cut_answers: dict[tuple[str, int], bool] = {}
        self._thinking = None if self.think_end_token is None else Thinking(self.tokenizer, self.think_end_token)

    @contextlib.contextmanager
    def batches_of(self, batch_size: int) -> Iterator[None]:
        """Ask with this batch size for a while."""
        before, self.batch_size_per_gpu = self.batch_size_per_gpu, batch_size
        try:
            yield
        finally:
            self.batch_size_per_gpu = before

    def on_progress(self, progress: Callable[[int], object] | None) -> None:
        """Call `progress(n)` whenever n more requests are answered."""
        self._progress = progress or (lambda count: None)

    # --- loglikelihood -------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        encoded = []
        for request in requests:
            context, continuation = self.encoded_pair(request)
            if not continuation:
                self._refuse_empty(request, f"choice {request.idx} ({request.args[1]!r})")
            self._refuse_truncation(request, len(context) + len(continuation) - 1, "prompt and continuation")
            encoded.append((request.args, context, continuation))
        return self._loglikelihood_tokens(encoded)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's length.

        Unlike lm-eval, which takes a begin-of-text token that the tokenizer puts before the text for a part of it and
        scores it after another one, every token of the text is scored once and nothing else.
        """
        windows: list[tuple[None, Sequence[int], Sequence[int]]] = []
        text_of: list[int] = []
        for index, request in enumerate(requests):
            (first,), ids = self._encoded_start(request, request.args[0])
            if not ids:
                self._refuse_empty(request, "its text")
            found = get_rolling_token_windows(list(ids), first, self.max_length, context_len=1)
            pairs = [make_disjoint_window(window) for window in found]
            windows += [(None, *pair) for pair in pairs]
            text_of += [index] * len(pairs)
        sums = [0.0] * len(requests)
        for index, (score, _) in zip(text_of, self._loglikelihood_tokens(windows), strict=True):
            sums[index] += score
        return sums

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        answers: list[Any] = [None] * len(requests)
        for rows in self._batches_of_equal_length(requests):
            keep = max(len(requests[idx][2]) for members in rows.values() for idx in members)
            logits = self.scored_logits([list(row) for row in rows], keep)
            for row_logits, members in zip(logits, rows.values(), strict=True):
                for idx in members:
                    answers[idx] = _score(row_logits, requests[idx][2])
                self._progress(len(members))
        return answers

    def _batches_of_equal_length(
        self, requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]]
    ) -> Iterator[dict[tuple[int, ...], list[int]]]:
        """Batches {row of token ids: requests it answers}; all rows of a batch have one length, longest first."""
        by_length: dict[int, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
        for idx, (_, context, continuation) in enumerate(requests):
            row = (*context, *continuation[:-1])
            by_length[len(row)][row].append(idx)
        for length in sorted(by_length, reverse=True):
            rows = list(by_length[length].items())
            for start in range(0, len(rows), self.batch_size):
                yield dict(rows[start : start + self.batch_size])

    @torch.inference_mode()
    def scored_logits(self, rows: list[list[int]], keep: int) -> torch.Tensor:
        """Log-probabilities [rows, keep, vocabulary] of the last positions only: never length x vocabulary."""
        input_ids = torch.tensor(rows, dtype=torch.long, device=self.device)
        logits = self.model(input_ids=input_ids, use_cache=False, logits_to_keep=keep).logits
        return torch.log_softmax(logits[:, -keep:].float(), dim=-1)

    # --- generation ----------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        groups: dict[str, list[int]] = defaultdict(list)
        for idx, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True, default=str)].append(idx)
        answers = [""] * len(requests)
        for members in groups.values():
            options = generation_options(requests[members[0]].args[1])
            for idx in members:
                self._refuse_truncation(
                    requests[idx],
                    len(self.encoded_prompt(requests[idx])) + options["max_new_tokens"],
                    f"prompt and {options['max_new_tokens']} new tokens",
                )
            members = sorted(members, key=lambda idx: (-len(self.encoded_prompt(requests[idx])), idx))
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                found = self._generate_batch([self.encoded_prompt(requests[idx]) for idx in batch], dict(options))
                for idx, (text, cut) in zip(batch, found, strict=True):
                    answers[idx], document = text, (requests[idx].task_name, requests[idx].doc_id)
                    self.cut_answers[document] = cut or self.cut_answers.get(document, False)
                self._progress(len(batch))
        return answers

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[array], options: dict[str, Any]) -> list[tuple[str, bool]]:
        """The answers, and whether the limit of new tokens cut them."""
        ids, real = self._padded(prompts)
        width = ids.shape[1]
        stops = [stop for stop in options.pop("until") if stop]
        criteria = [StopStrings(self.tokenizer, stops, width, self._thinking)] if stops else []
        output = self._generate(ids, real, stopping_criteria=StoppingCriteriaList(criteria), **options)
        new = output[:, width:]
        if self._thinking is None:
            texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        else:
            texts = [self._thinking.answer(row, skip_special_tokens=True) for row in new.tolist()]
        cut = cut_off(new, options["max_new_tokens"], self._end_ids(), criteria[0].done if criteria else None)
        return list(zip([cut_at(text, stops) for text in texts], cut, strict=True))

    @torch.inference_mode()
    def first_token_log_probs(self, prompts: list[array]) -> torch.Tensor:
        """Log-probabilities [prompts, vocabulary] of the first generated token, batched as in generation."""
        output = self._generate(
            *self._padded(prompts), max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        return torch.log_softmax(output.logits[0].float(), dim=-1)

    def _padded(self, prompts: list[array]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, both [prompts, longest], padded on the left."""
        width, pad = max(len(prompt) for prompt in prompts), self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=self.device)
        real = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.device)
        return ids, real

    def _generate(self, ids: torch.Tensor, real: torch.Tensor, **options: Any) -> Any:
        return self.model.generate(
            input_ids=ids,
            attention_mask=real,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self._end_ids(),
            use_cache=True,
            **options,
        )

    def _end_ids(self) -> list[int] | None:
        declared = getattr(self.model.generation_config, "eos_token_id", None)
        ids = {*(declared if isinstance(declared, list) else [declared]), self.tokenizer.eos_token_id}
        return sorted(token for token in ids if token is not None) or None


class ExactLM(ExactRequests):
    """`ExactRequests` to an already loaded model."""

    def __init__(
        self, model: Any, tokenizer: Any, *, batch_size: int = 16, progress: Callable[[int], object] | None = None
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=models.max_tokens(model),
            progress=progress,
        )
        self._device = models.input_device(model)


def _score(log_probs: torch.Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    """Sum of the continuation's log-probabilities, and whether each token is the likeliest.

    Args:
        log_probs: [positions, vocabulary]; the last ones predict the continuation.
    """
    target = torch.tensor(list(continuation), dtype=torch.long, device=log_probs.device)
    positions = log_probs[-len(target) :]
    chosen = positions.gather(-1, target[:, None])
    return float(chosen.sum()), bool((positions.argmax(-1) == target).all())
