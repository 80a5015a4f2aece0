"""The data: documents cut from text files, a tokenizer learned from them, rows of tokens, held-out documents.

Everything is made once per output folder and read from there.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from sa_eval.tasks import TASKS, scene
from sa_eval.tasks.base import Request, TooShort

from .settings import Settings

END = "<|endoftext|>"
_SHORTEST = 200  # characters: what is shorter belongs to the document before it
_HELD_OUT = 20  # one document in so many
_QUESTIONS = 24  # about one scene
IGNORED = -100  # label of what is no part of the loss


def documents(settings: Settings) -> tuple[list[str], list[str]]:
    """(to train on, held out): whole documents, told apart by a hash of their text."""
    found: list[str] = []
    for name in settings.text:
        text = Path(name).read_text(encoding="utf-8", errors="replace")
        starts = [match.start() for match in re.finditer(settings.document_start, text, re.MULTILINE)]
        pieces = [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]
        own: list[str] = []
        for piece in pieces:
            if own and len(piece) < _SHORTEST:
                own[-1] += piece
            elif piece.strip():
                own.append(piece)
        found += own
    held = [text for text in found if _number(text) % _HELD_OUT == 0]
    return [text for text in found if _number(text) % _HELD_OUT], held


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def learn_tokenizer(settings: Settings, texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the training documents and of the synthetic language."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*texts, *_synthetic_sample()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def _synthetic_sample() -> Iterator[str]:
    for task in TASKS:
        for index in range(100):
            made = scene(task, str.__len__, 4000, 0, index, "train")
            yield made.context + "".join(question.tail + question.target for question in made.questions[:_QUESTIONS])


@dataclass(frozen=True)
class Rows(Dataset):
    """Training rows in a fixed order.

    Attributes:
        ids: int64 [rows, length]; labels: the same, IGNORED where nothing is to be learned.
    """

    ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids, labels = self.ids[index].astype(np.int64), self.labels[index].astype(np.int64)
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}


def prepare(settings: Settings, out: Path) -> None:
    """Write tokenizer.json, train.npz and held_out.npz.

    Raises:
        ValueError: where the texts give too little, or no document to hold out.
    """
    train, held = documents(settings)
    if not train or not held:
        raise ValueError(
            f"found {len(train)} documents to train on and {len(held)} held out in {', '.join(settings.text)}: give "
            "more text, or a --document-start that matches the line a document begins with"
        )
    tokenizer = learn_tokenizer(settings, train)
    rows = settings.steps * settings.batch_tokens // settings.length
    synthetic = round(rows * settings.synthetic)
    ids, labels = _text_rows(settings, tokenizer, train, rows - synthetic)
    more, more_labels = _synthetic_rows(settings, tokenizer, synthetic)
    order = np.random.default_rng(0).permutation(rows)
    pages = _pages(settings, tokenizer, held)
    tokenizer.save_pretrained(out)
    np.savez(
        out / "train.npz", ids=np.concatenate([ids, more])[order], labels=np.concatenate([labels, more_labels])[order]
    )
    np.savez(out / "held_out.npz", **pages)


def text_hash(settings: Settings) -> str:
    """Of the files' contents, in their order, whatever they are called."""
    whole = hashlib.sha256()
    for name in settings.text:
        whole.update(hashlib.sha256(Path(name).read_bytes()).digest())
    return whole.hexdigest()


def data_hashes(out: Path) -> dict[str, str]:
    """What all runs of a folder share: SHA-256 of the tokenizer, the training rows and what is held out."""
    found = {"tokenizer": hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest()}
    for name in ("train", "held_out"):
        whole = hashlib.sha256()
        with np.load(out / f"{name}.npz") as kept:
            for part in sorted(kept.files):
                whole.update(f"{part} {kept[part].dtype} {kept[part].shape}".encode() + kept[part].tobytes())
        found[name] = whole.hexdigest()
    return found


def load_rows(out: Path) -> Rows:
    kept = np.load(out / "train.npz")
    return Rows(kept["ids"], kept["labels"])


def load_tokenizer(out: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(out)


def _text_rows(settings: Settings, tokenizer, texts: list[str], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents in a fixed random order, one after the other; begun again where there is not enough text."""
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    need, stream = rows * settings.length, []
    with tqdm(total=need, desc="text", unit="tok", unit_scale=True) as bar:
        while len(stream) < need:
            for number in order:
                ids = tokenizer.encode(texts[number], add_special_tokens=False)
                stream += [*ids, tokenizer.eos_token_id]
                bar.update(len(ids) + 1)
                if len(stream) >= need:
                    break
    ids = np.array(stream[:need], dtype=np.int32).reshape(rows, settings.length)
    return ids, ids


def _synthetic_rows(settings: Settings, tokenizer, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Scenes of the offline suite's train split with many questions about each, one a row."""
    ids = np.full((rows, settings.length), tokenizer.eos_token_id, dtype=np.int32)
    labels = np.full((rows, settings.length), IGNORED, dtype=np.int32)
    names = list(TASKS)
    for row in tqdm(range(rows), desc="synthetic", unit="row"):
        rng = random.Random(f"synthetic|{row}")
        found = _scene_ids(settings, tokenizer, names[row % len(names)], rng, "train")
        ids[row, : len(found)] = found
        labels[row, : len(found)] = found
    return ids, labels


def _scene_ids(settings: Settings, tokenizer, task: str, rng: random.Random, split: str) -> list[int]:
    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    share = rng.uniform(0.4, 0.9)
    for budget in (int(share * settings.length), settings.length - 2):
        try:
            made = TASKS[task].scene(Request(rng, count, budget, split))
        except TooShort:
            continue
        questions = list(made.questions)
        rng.shuffle(questions)
        ids = tokenizer.encode(made.context, add_special_tokens=False)
        for question in questions[:_QUESTIONS]:
            more = tokenizer.encode(question.tail + question.target, add_special_tokens=False)
            if len(ids) + len(more) + 1 > settings.length:
                break
            ids += [*more, tokenizer.eos_token_id]
        return ids[: settings.length]
    raise ValueError(f"length={settings.length} is too short for {task}: use a longer one, or --synthetic 0")


def _pages(settings: Settings, tokenizer, held: list[str]) -> dict[str, np.ndarray]:
    """Held-out pages of text, each from a document of its own, and questions of the suite's eval split."""
    pages = []
    for text in sorted(held, key=_number):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) >= settings.length:
            pages.append(ids[: settings.length])
        if len(pages) == settings.documents:
            break
    if not pages:
        raise ValueError(f"no held-out document has {settings.length} tokens: give longer texts, or a shorter --length")
    prompts, answers, tasks = [], [], []

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    for number, task in enumerate(TASKS if settings.synthetic else ()):
        for index in range(settings.questions):
            question = scene(task, count, settings.length - 8, 1, index, "eval")
            asked = question.questions[0]
            prompts.append(tokenizer.encode(question.context + asked.tail, add_special_tokens=False))
            answers.append(tokenizer.encode(asked.target, add_special_tokens=False))
            tasks.append(number)
    width = max((len(p) + len(a) for p, a in zip(prompts, answers, strict=True)), default=0)
    asked_ids = np.full((len(prompts), width), tokenizer.eos_token_id, dtype=np.int32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        asked_ids[row, : len(prompt) + len(answer)] = [*prompt, *answer]
    return {
        "pages": np.array(pages, dtype=np.int32),
        "questions": asked_ids,
        "prompt_len": np.array([len(prompt) for prompt in prompts], dtype=np.int32),
        "answer_len": np.array([len(answer) for answer in answers], dtype=np.int32),
        "task": np.array(tasks, dtype=np.int32),
    }
