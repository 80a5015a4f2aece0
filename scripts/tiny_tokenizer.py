"""The bundled tokenizer: byte-level BPE that keeps every word of the suite, and up to three digits, whole."""

from __future__ import annotations

import json

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sa_eval.tasks import TASKS, scene
from sa_eval.tasks.words import NUMBERS, vocabulary

END = "<|endoftext|>"
_PIECES = 300  # merges learned for text outside the suite; the bytes behind them cover everything
# Words and digits take one leading space along; digits go in runs of up to three, as in Llama 3.
_SPLIT = r"'(?i:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, made anew from the suite's words and a sample of its documents."""
    texts = list(_sample())
    learned = _bare(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=256 + _PIECES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    learned.train_from_iterator([*texts, *(f" {word}" for word in vocabulary())], trainer)
    model = json.loads(learned.to_str())["model"]
    ids: dict[str, int] = dict(model["vocab"])
    for piece in _whole(learned, texts):
        ids.setdefault(piece, len(ids))
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = _bare(models.BPE(vocab=ids, merges=merges, ignore_merges=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def word_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of every word and number of the suite: one token each, or this raises."""
    found = []
    for word in (*vocabulary(), *NUMBERS):
        ids = tokenizer.encode(f" {word}", add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"the tokenizer splits {word!r} into {len(ids)} tokens; build it from the suite's words")
        found += ids
    return found


def _bare(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sample():
    """Some documents of every task, with their answers, for the words of the templates."""
    for task in TASKS:
        for index in range(24):
            made = scene(task, str.__len__, 3000, 0, index, "train")
            yield made.context + "".join(question.tail + question.target for question in made.questions[:4])


def _whole(tokenizer: Tokenizer, texts: list[str]):
    """Pieces that get a token of their own: words, numbers, and whatever else the templates are made of."""

    def pieces(text: str) -> list[str]:
        return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    for word in (*vocabulary(), *NUMBERS):
        yield from pieces(f" {word}")
    yield from (f"{number:03d}" for number in range(1000))
    yield from sorted({piece for text in texts for piece in pieces(text)})
