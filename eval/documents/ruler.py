"""RULER through lm-eval: one length per task instance, our seeds, the loaded tokenizer, a limit on its time.

What lm-eval's generators do by themselves: draw from the global generators (so task order changes the data), build 500
documents whatever the limit, load the tokenizer with trust_remote_code=True, and retry forever inside a bare `except`
when a document cannot fit. So they run in a child process that is seeded, gets our tokenizer, and is ended when late.
"""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from transformers import AutoTokenizer

from sa_eval.settings.config import Settings

OFFLINE = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "ruler_vt", "ruler_cwe", "ruler_fwe")
ESSAYS = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multiquery", "niah_multivalue")
QUESTIONS = ("ruler_qa_squad", "ruler_qa_hotpot")
NAMES = (*OFFLINE, *ESSAYS, *QUESTIONS)
GROUPS = {"ruler": NAMES, "ruler-offline": OFFLINE}
# In the offline suite's families, because variants win in different ones.
FAMILIES = {
    "niah": "retrieval",
    "ruler_vt": "tracing",
    "ruler_cwe": "aggregation",
    "ruler_fwe": "aggregation",
    "ruler_qa": "retrieval",
}
BASE_SECONDS, TOKENS_PER_SECOND = 40, 50
MOST_DOCUMENTS = 500  # what RULER's generators make
FETCH_SECONDS = 600  # for the texts of tasks that are not offline
SPLITTER = "punkt_tab"  # nltk's sentence splitter


def is_ruler(name: str) -> bool:
    return name in NAMES


def is_asked(name: str) -> bool:
    """Whether a name under --tasks means RULER, as a task or a group of them."""
    return name in NAMES or name in GROUPS


def family(name: str) -> str:
    return next(family for start, family in FAMILIES.items() if name.startswith(start))


def new_tokens(name: str) -> int:
    """The most tokens that the task lets a model generate."""
    return int(_manager(0).task_index[name].cfg["generation_kwargs"]["max_gen_toks"])


def load(name: str, length: int, settings: Settings, tokenizer: Any) -> Any:
    """The lm-eval task with its documents at one length."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    wanted = settings.num_samples if isinstance(settings.num_samples, int) else None

    def documents() -> list[dict[str, Any]]:
        task = _build(name, length, settings.doc_seed, tokenizer)
        return list(task.dataset["test"])[:wanted]

    if name in OFFLINE and name.startswith("niah"):
        with _no_nltk_download():  # millions of words are made on import: here, so that children have them
            importlib.import_module("lm_eval.tasks.ruler.prepare_niah")
    seconds = BASE_SECONDS + length / TOKENS_PER_SECOND + (0 if name in OFFLINE else FETCH_SECONDS)
    rows = _in_child(
        documents,
        seconds,
        f"RULER's generator of {name} did not finish at {length} tokens in {seconds:.0f} s; it "
        "retries forever when a document cannot fit this tokenizer and length: ask for a longer length",
    )
    if wanted is not None and len(rows) < wanted:
        raise ValueError(
            f"RULER's generator of {name} made {len(rows)} of {wanted} documents at {length} tokens and "
            f"dropped the others: ask for a longer length, or fewer documents (it makes {MOST_DOCUMENTS} at most)"
        )
    if not all(row["outputs"] for row in rows):
        raise ValueError(
            f"RULER's generator of {name} made documents without answers at {length} tokens: ask for a longer length"
        )

    def hold(task: Any, *args: Any, **kwargs: Any) -> None:
        task.dataset = {"test": Dataset.from_list(rows)}

    with mock.patch.object(ConfigurableTask, "download", hold), _no_nltk_download():
        return _manager(length).load([name])["tasks"][name]


def _build(name: str, length: int, doc_seed: int, tokenizer: Any) -> Any:
    """Runs in the child: the same documents whatever ran before, and no code from the hub."""
    digest = hashlib.sha256(f"{name}|{length}|{doc_seed}".encode()).digest()
    random.seed(int.from_bytes(digest[:8], "big"))
    np.random.seed(int.from_bytes(digest[:4], "big"))
    loaded_tokenizer = mock.patch.object(AutoTokenizer, "from_pretrained", lambda *args, **kwargs: tokenizer)
    if name in ESSAYS:
        _fetch_splitter()
    with loaded_tokenizer, _no_nltk_download():
        return _manager(length).load([name])["tasks"][name]


def _no_nltk_download() -> Any:
    """RULER's module fetches a sentence splitter on import; only its essay tasks use it, and get it before."""
    return mock.patch("nltk.download", lambda *args, **kwargs: False)


def _fetch_splitter() -> None:
    """What RULER's module does when it is first imported; here it may have been imported for an offline task before.

    Raises:
        RuntimeError: when it is neither here nor to be had: the generator would take its absence for documents that
            do not fit, try smaller ones, and drop them all.
    """
    import nltk

    try:
        nltk.data.find(f"tokenizers/{SPLITTER}")
    except LookupError:
        if not nltk.download(SPLITTER, quiet=True):
            raise RuntimeError(
                f"RULER's essay tasks need nltk's sentence splitter {SPLITTER}, which is not here and cannot be "
                f"fetched: run `python -m nltk.downloader {SPLITTER}` where there is a network, or leave them out"
            ) from None


@cache
def _manager(length: int) -> Any:
    """An index of RULER's folder alone: the whole one takes seconds."""
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent / "ruler"
    metadata = {"max_seq_lengths": [length], "tokenizer": "the loaded one"}
    return lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)


def _in_child(work: Callable[[], Any], seconds: float, late: str) -> Any:
    """Run `work` in a forked child; raise TimeoutError(late) when it is not done in time. No fork, no limit."""
    if sys.platform == "win32":
        return work()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(work, sender), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise TimeoutError(late)
        result = receiver.recv()
    except EOFError:
        raise RuntimeError("RULER's generator ended without an answer") from None
    finally:
        child.kill()
        child.join()
    if isinstance(result, BaseException):
        raise result
    return result


def _send(work: Callable[[], Any], sender: Any) -> None:
    try:
        sender.send(work())
    except Exception as error:
        sender.send(RuntimeError(f"{type(error).__name__}: {error}"))
