"""What the tests of the harness share: a tiny random Qwen3 with a small tokenizer, saved in a folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sa_eval.tasks import TASKS, document


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on a few documents of the suite: any text can be encoded."""
    texts = [
        document(name, lambda text: len(text.split()), 200, 0, index, "train").prompt
        for name in TASKS
        for index in range(2)
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<pad>", "<end>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def tiny_model(seed: int = 0, positions: int = 1024) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
    )
    return Qwen3ForCausalLM(config).eval()


def save_tiny_model(folder: Path) -> str:
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
