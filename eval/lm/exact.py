"""Owns how a model is asked: lm-eval's HFLM with true lengths, cheap scoring and no silent truncation.

Loglikelihood rows are batched by exact length, so there is no padding that a sparse pattern could count as tokens, and
identical rows (one context, several one-token choices) run once. Only the scored positions get logits. Generation is
left-padded and always carries its attention mask. Tokens are remembered across arms: every arm asks the same requests.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIncompatibleMethodOverride=false
# lm-eval's classes declare too little for a checker.

from __future__ import annotations

import contextlib
import json
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import StoppingCriteria, StoppingCriteriaList

from sa_eval.loading import models

DEFAULT_NEW_TOKENS = 256


class TruncationError(ValueError):
    """A document does not fit the model; scoring the rest of it would be another task."""


class ExactRequests(HFLM):
    """HFLM, however its model came to be, for patches that must know every row's true length."""

    def __init__(self, *arguments: Any, progress: Callable[[int], None] | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._progress = progress or (lambda count: None)
        self._tokens: dict[Any, Any] = {}

    @contextlib.contextmanager
    def smaller_batches(self, batch_size: int) -> Iterator[None]:
        """Ask with this batch size for a while."""
        before, self.batch_size_per_gpu = self.batch_size_per_gpu, batch_size
        try:
            yield
        finally:
            self.batch_size_per_gpu = before

    def on_progress(self, progress: Callable[[int], None] | None) -> None:
        """Call `progress(n)` whenever n more requests are answered."""
        self._progress = progress or (lambda count: None)

    # --- loglikelihood -------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        encoded = []
        for request in requests:
            context, continuation = self.encoded_pair(request)
            self._refuse_truncation(request, len(context) + len(continuation) - 1, "prompt and continuation")
            encoded.append((request.args, context, continuation))
        return self._loglikelihood_tokens(encoded)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def encoded_pair(self, request: Instance) -> tuple[array, array]:
        """Token ids of context and continuation, split as lm-eval splits them."""
        if request.args not in self._tokens:
            context, continuation = request.args
            if context == "":
                ids = self.tok_encode(continuation, add_special_tokens=False)
                pair = ([self.prefix_token_id], ids) if ids[0] != self.prefix_token_id else (ids[:1], ids[1:])
            else:
                pair = self._encode_pair(context, continuation)
            self._tokens[request.args] = (array("l", pair[0]), array("l", pair[1]))
        return self._tokens[request.args]

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
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

    def _batches_of_equal_length(self, requests: list[Any]) -> Iterator[dict[tuple[int, ...], list[int]]]:
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
        """Log-probabilities of the last `keep` positions only: never length x vocabulary."""
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
                texts = self._generate_batch([self.encoded_prompt(requests[idx]) for idx in batch], dict(options))
                for idx, text in zip(batch, texts, strict=True):
                    answers[idx] = text
                self._progress(len(batch))
        return answers

    def encoded_prompt(self, request: Instance) -> array:
        prompt = request.args[0]
        if prompt not in self._tokens:
            self._tokens[prompt] = array("l", self.tok_encode(prompt))
        return self._tokens[prompt]

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[array], options: dict[str, Any]) -> list[str]:
        ids, real = self._padded(prompts)
        width = ids.shape[1]
        stops = [stop for stop in options.pop("until") if stop]
        criteria = StoppingCriteriaList([_StopStrings(self.tokenizer, stops, width)] if stops else [])
        output = self._generate(ids, real, stopping_criteria=criteria, **options)
        texts = self.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        return [_cut(text, stops) for text in texts]

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
        ids = set(declared if isinstance(declared, list) else [declared]) | {self.tokenizer.eos_token_id}
        return sorted(ids - {None}) or None

    # --- limits --------------------------------------------------------------------------------------------------

    def _refuse_truncation(self, request: Instance, tokens: int, what: str) -> None:
        limit = self._max_length
        if limit is not None and tokens > limit:
            raise TruncationError(
                f"document {request.doc_id} of {request.task_name}: {what} take {tokens} tokens, the model holds "
                f"{limit}; nothing is truncated here: use a shorter length or a model with more positions"
            )


class ExactLM(ExactRequests):
    """`ExactRequests` to an already loaded model."""

    def __init__(
        self, model: Any, tokenizer: Any, *, batch_size: int = 16, progress: Callable[[int], None] | None = None
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


class _StopStrings(StoppingCriteria):
    """Stops each row at its own stop string (lm-eval's criterion decodes once per stop string; this once per step)."""

    def __init__(self, tokenizer: Any, stops: list[str], prompt_len: int) -> None:
        self.tokenizer, self.stops, self.prompt_len = tokenizer, stops, prompt_len
        self.look_back = 2 + max(len(tokenizer.encode(stop, add_special_tokens=False)) for stop in stops)
        self.done: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        new = input_ids[:, self.prompt_len :][:, -self.look_back :]
        hits = [any(stop in text for stop in self.stops) for text in self.tokenizer.batch_decode(new)]
        now = torch.tensor(hits, device=input_ids.device)
        self.done = now if self.done is None else self.done | now
        return self.done


def generation_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's generation arguments as `generate` takes them: greedy unless the task asks to sample."""
    options = dict(arguments)
    lengths = [
        options.pop(name, None) for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    ]
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


def _score(log_probs: torch.Tensor, continuation: Any) -> tuple[float, bool]:
    target = torch.tensor(list(continuation), dtype=torch.long, device=log_probs.device)
    positions = log_probs[-len(target) :]
    chosen = positions.gather(-1, target[:, None])
    return float(chosen.sum()), bool((positions.argmax(-1) == target).all())


def _cut(text: str, stops: list[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text
