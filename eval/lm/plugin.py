"""lm-eval's model type `sa`: HFLM that loads as it always does, patches what it loaded, and asks exactly.

`lm-eval --model sa --model_args pretrained=...,mode=sa,window=512,seed=1` with lm-eval's own tasks, flags and results.
Arguments that would be ignored, or that would let one variant answer for another, are refused.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import sa_patch
from sa_eval.lm.exact import ExactRequests
from sa_eval.lm.stock import HFLM
from sa_eval.lm.tokens import RequestError
from sa_eval.loading import models
from sa_eval.messages import shown
from sa_eval.settings.values import SettingsError, nearest
from sa_patch.signature import KernelName
from sa_patch.variants import all_options, make_variant, modes

__all__ = ["NO_CACHE", "RequestError", "SparseLM"]

NO_CACHE = (
    "--use_cache keeps answers under the request alone, so another mode, window or seed would be given this one's: "
    "leave it out (--cache_requests, which keeps prompts, is fine)"
)
# HFLM's own ways that exact asking has no part in, with what to do instead.
IGNORED = {
    "truncation": "nothing is truncated here: a document that does not fit the model is an error",
    "softmax_dtype": "log-probabilities are always computed in float32",
    "mixed_precision_dtype": "there is no autocast here: give dtype",
}
LOG = logging.getLogger(__name__)
CUT = (
    "{task}: {cut} of {answered} documents have an answer that the limit of new tokens cut; where another mode or "
    "window has another share of them, a comparison of scores compares lengths (cut_answers in the results names them)"
)
LIKE = 0.8  # names that are this much like one of ours are typing errors, not transformers' arguments


class CutAnswers(TypedDict):
    """Of a task: documents with a generated answer, and the numbers of those that the limit of new tokens cut."""

    answered: int
    cut: list[int]


class SparseLM(ExactRequests):
    """A model with one of sa_patch's variants; scores are those of sa-eval, document by document, in the same dtype:
    left out it is the checkpoint's, as in lm-eval, where sa-eval takes float32 on a CPU.

    Args:
        pretrained: a hub id or a folder.
        mode: a mode of sa_patch or a name of sa-eval's --modes; "full" is the model's own attention.
        kernel: the kernel of sa_patch.
        batch_size: documents per forward pass.
        options: the variant's options (window, seed, sinks, dense_tail, decode, ...), HFLM's arguments (dtype, peft,
            parallelize, tp_plan, ...), and whatever transformers' from_pretrained takes.

    Raises:
        SettingsError: an unknown mode or option, one that would be ignored, a model that is no causal one.
    """

    def __init__(
        self,
        pretrained: str,
        mode: str | None = None,
        kernel: KernelName = "auto",
        batch_size: int | str = 1,
        device: str | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(pretrained, str):
            raise SettingsError("pretrained must be a hub id or a folder; sa_eval.lm.exact.ExactLM takes loaded models")
        self._kernel: KernelName = kernel
        self._options, others = _split(options)
        self._variant = _variant(mode, self._options)
        _refuse_ignored(others, batch_size)
        self.patch: sa_patch.Patch | None = None
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained=pretrained, batch_size=int(batch_size), device=device, **others)
        if self._max_length is None:
            self._max_length = models.max_tokens(self.model)
        if hasattr(self, "accelerator"):  # HFLM believes it on several GPUs only, and machine by machine
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    def _get_backend(self, config: Any, backend: str = "default", trust_remote_code: bool | None = False) -> None:
        kind = getattr(config, "model_type", None)
        own_code = bool(trust_remote_code and getattr(config, "auto_map", None))
        if backend == "seq2seq" or not (kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or own_code):
            raise SettingsError(
                f"--model sa takes causal language models; this is {shown(kind)}"
                f"{' as a ' + backend if backend != 'default' else ''}: run it with --model hf"
            )
        super()._get_backend(config, "causal", trust_remote_code)

    def _create_model(self, *arguments: Any, **options: Any) -> None:
        super()._create_model(*arguments, **options)
        if self._variant is not None:
            self.patch = sa_patch.apply(self._model, variant=self._variant, kernel=self._kernel)

    def set_cache_hook(self, cache_hook: Any) -> None:
        raise SettingsError(NO_CACHE)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        with self._bar("loglikelihood", requests, disable_tqdm):
            return super().loglikelihood(requests)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        with self._bar("generate_until", requests, disable_tqdm):
            answers = super().generate_until(requests)
        if self.world_size > 1:  # lm-eval calls this in every process, as often in each
            self.cut_answers = _joined(gather_object(list(self.cut_answers.items())))
        for task, said in self._cut_by_task().items():
            if said["cut"] and self.rank == 0:
                LOG.warning(CUT.format(task=task, cut=len(said["cut"]), answered=said["answered"]))
        return answers

    def _bar(self, what: str, requests: list[Any], hidden: bool) -> tqdm:
        bar = tqdm(total=len(requests), disable=hidden or self.rank != 0, desc=f"Running {what} requests")
        self.on_progress(bar.update)
        return bar

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results: the model, the variant it was asked with, which answers were cut."""
        cut = self._cut_by_task()
        return {
            **super().get_model_info(),
            "sa_patch": self.patch.config if self.patch else {"mode": "full"},
            **({"cut_answers": cut} if cut else {}),
        }

    def _cut_by_task(self) -> dict[str, CutAnswers]:
        found: dict[str, CutAnswers] = {}
        for (task, document), cut in sorted(self.cut_answers.items()):
            said = found.setdefault(task, {"answered": 0, "cut": []})
            said["answered"] += 1
            said["cut"] += [document] if cut else []
        return found


def _joined(items: list[tuple[tuple[str, int], bool]]) -> dict[tuple[str, int], bool]:
    """What several processes found; they share documents where those do not come out even."""
    found: dict[tuple[str, int], bool] = {}
    for document, cut in items:
        found[document] = cut or found.get(document, False)
    return found


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variant's options and the others; a name that is nearly one of ours or HFLM's is refused."""
    ours = list(all_options())
    others = {name: value for name, value in options.items() if name not in ours}
    known = [name for name in inspect.signature(HFLM.__init__).parameters if name not in ("self", "kwargs")]
    for name in others:
        if name not in known and difflib.get_close_matches(name, [*ours, *known, "mode", "kernel"], 1, LIKE):
            raise SettingsError(
                f"unknown argument {shown(name)} of --model sa: {nearest(name, [*ours, *known, 'mode', 'kernel'])}"
            )
    return {name: value for name, value in options.items() if name in ours}, others


def _variant(mode: str | None, options: Mapping[str, Any]) -> sa_patch.Variant | None:
    """The variant that was asked for; None is the model's own attention."""
    if mode is None:
        raise SettingsError(f"--model sa needs mode=... in --model_args: one of {', '.join(modes())}")
    if mode not in list(modes()):
        raise SettingsError(f"mode {shown(mode)} is not known: {nearest(str(mode), list(modes()))}")
    try:
        found = make_variant(mode, options)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise SettingsError(f"mode {mode!r} cannot run: {error}") from error
    return None if mode == "full" else found


def _refuse_ignored(others: Mapping[str, object], batch_size: int | str) -> None:
    for name, reason in IGNORED.items():
        if others.get(name):
            raise SettingsError(f"{name}={others[name]!r} does nothing with --model sa: {reason}")
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise SettingsError(
            f"--batch_size {batch_size} is for --model hf: batches here hold documents of one length, give their number"
        )
