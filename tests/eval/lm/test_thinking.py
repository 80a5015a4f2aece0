"""Laws of thinking: it is removed first, then stop strings end the answer, for every arm and batch size."""

import pytest
import torch
from lm_eval.api.instance import Instance

from sa_eval.lm.plugin import SparseLM
from sa_eval.loading import sources

SAID = {  # prompt: what the model says to it
    "one": "hmm. 7? no.\n</think>\n 8. and more",
    "two two": "short </think> 9 is it. really",
    "three three three": "never ends. at all",
}
ANSWERS = ["8", "9 is it", "never ends"]


def requests():
    arguments = {"until": ["."], "max_gen_toks": 40}
    return [Instance("generate_until", {}, (prompt, arguments), 0, ("task", at, 1)) for at, prompt in enumerate(SAID)]


class Script:
    """Makes `generate` say what is written for each prompt."""

    def __init__(self, tokenizer, width):
        self.tokenizer, self.width, self.steps = tokenizer, width, 0
        self.scripts = {prompt: [*tokenizer.encode(said), tokenizer.eos_token_id] for prompt, said in SAID.items()}

    def __call__(self, input_ids, scores):
        at, self.steps = input_ids.shape[1] - self.width, self.steps + 1
        for row, ids in enumerate(input_ids):
            prompt = self.tokenizer.decode(ids[: self.width], skip_special_tokens=True)
            script = self.scripts[prompt]
            scores[row] = -torch.inf
            scores[row, script[min(at, len(script) - 1)]] = 0
        return scores


def scripted(monkeypatch, end, mode="sa", batch_size=4):
    """The model type sa whose model says what is written above; the scripts that were followed are in the list."""
    lm = SparseLM(sources.find("qwen3-tiny").path, mode=mode, window=8, batch_size=batch_size, think_end_token=end)
    honest, scripts = lm._generate, []

    def generate(ids, real, **options):
        scripts.append(Script(lm.tokenizer, ids.shape[1]))
        return honest(ids, real, logits_processor=[scripts[-1]], **options)

    monkeypatch.setattr(lm, "_generate", generate)
    return lm, scripts


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("mode", ["full", "sa"])
def test_stop_strings_end_the_answer_and_not_the_thinking(monkeypatch, mode, batch_size):
    lm, _ = scripted(monkeypatch, "</think>", mode, batch_size)
    assert lm.generate_until(requests(), disable_tqdm=True) == ANSWERS


def test_generation_ends_with_the_answer(monkeypatch):
    lm, scripts = scripted(monkeypatch, "</think>", batch_size=1)
    lm.generate_until(requests()[:1], disable_tqdm=True)
    said = lm.tokenizer.encode(SAID["one"].removesuffix(" and more"))
    assert scripts[0].steps == len(said)


@pytest.mark.parametrize("kind", [int, str])
def test_a_number_is_the_number_of_a_token_as_in_lm_eval(monkeypatch, kind):
    lm, _ = scripted(monkeypatch, None)
    (token,) = lm.tokenizer.encode(" 7")
    lm, _ = scripted(monkeypatch, kind(token))
    assert lm.generate_until(requests()[:1], disable_tqdm=True) == ["? no"]


def test_an_end_that_is_a_special_token_is_found(monkeypatch):
    lm, _ = scripted(monkeypatch, None)
    special = lm.tokenizer.eos_token
    ids = [*lm.tokenizer.encode("so. on "), lm.tokenizer.eos_token_id, *lm.tokenizer.encode(" 8. 9")]
    lm, _ = scripted(monkeypatch, special)
    monkeypatch.setattr(lm, "_generate", lambda given, real, **options: torch.cat([given, torch.tensor([ids])], 1))
    assert lm.generate_until(requests()[:1], disable_tqdm=True) == ["8"]
