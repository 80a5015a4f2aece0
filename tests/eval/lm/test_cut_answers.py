"""Laws of answers that the limit of new tokens cut: said per document, whatever the batch, by every way of asking."""

import pytest
import torch
from lm_eval.api.instance import Instance

from sa_eval.lm.generation import cut_off
from sa_eval.lm.plugin import SparseLM
from sa_eval.loading import sources

LIMIT = 7  # tokens of "the river stone market window."
END = "<|endoftext|>"
SAID = {  # prompt: what the model says to it, and whether the limit cuts it
    "one": ("the river stone market window garden letter", True),
    "two two": ("the river stone. market window garden letter", False),
    "three three three": (f"the river{END}", False),
    "four": ("the river stone market window.", False),  # the stop string is the last token that there is room for
    "five five": (f"the river stone market window{END}", False),  # so is the end of the text
}


class Script:
    """Makes `generate` say what is written for each prompt."""

    def __init__(self, tokenizer, width):
        self.tokenizer, self.width = tokenizer, width
        self.scripts = {prompt: tokenizer.encode(said, add_special_tokens=False) for prompt, (said, _) in SAID.items()}

    def __call__(self, input_ids, scores):
        at = input_ids.shape[1] - self.width
        for row, ids in enumerate(input_ids):
            script = self.scripts[self.tokenizer.decode(ids[: self.width], skip_special_tokens=True)]
            scores[row] = -torch.inf
            scores[row, script[at] if at < len(script) else self.tokenizer.pad_token_id] = 0
        return scores


@pytest.fixture
def scripted(monkeypatch):
    """The model type sa whose model says what is written above."""

    def make(batch_size, mode="sa"):
        lm = SparseLM(sources.find("qwen3-tiny").path, mode=mode, window=8, batch_size=batch_size)
        honest = lm._generate

        def generate(ids, real, **options):
            return honest(ids, real, logits_processor=[Script(lm.tokenizer, ids.shape[1])], **options)

        monkeypatch.setattr(lm, "_generate", generate)
        return lm

    return make


def requests(limit=LIMIT, repeats=1, until=(".",)):
    arguments = {"until": list(until), "max_gen_toks": limit}
    return [
        Instance("generate_until", {}, (prompt, arguments), 0, ("task", at, repeats)) for at, prompt in enumerate(SAID)
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_an_answer_is_cut_where_neither_a_stop_string_nor_the_end_of_the_text_ended_it(scripted, batch_size):
    lm = scripted(batch_size)
    lm.generate_until(requests(), disable_tqdm=True)
    assert lm.cut_answers == {("task", at): cut for at, (_, cut) in enumerate(SAID.values())}


def test_a_document_with_several_answers_is_cut_where_one_of_them_is(scripted):
    lm = scripted(5)
    lm.generate_until([request for request in requests(repeats=2) for _ in range(2)], disable_tqdm=True)
    lm.generate_until(requests(limit=40), disable_tqdm=True)
    assert lm.cut_answers == {("task", at): cut for at, (_, cut) in enumerate(SAID.values())}


def test_lm_evals_results_and_log_say_which_documents_were_cut(scripted, caplog):
    lm = scripted(5)
    assert "cut_answers" not in lm.get_model_info()
    lm.generate_until(requests(), disable_tqdm=True)
    assert lm.get_model_info()["cut_answers"] == {"task": {"answered": len(SAID), "cut": [0]}}
    assert "task: 1 of 5 documents have an answer that the limit of new tokens cut" in caplog.text
    caplog.clear()
    lm = scripted(5)
    lm.generate_until(requests()[1:], disable_tqdm=True)
    assert lm.get_model_info()["cut_answers"] == {"task": {"answered": len(SAID) - 1, "cut": []}}
    assert not caplog.text


def test_rows_shorter_than_the_limit_are_not_cut_whatever_they_hold():
    new = torch.tensor([[5, 6, 7], [5, 2, 2]])
    assert cut_off(new, limit=4, ends=[2], stopped=None) == [False, False]
    assert cut_off(new, limit=3, ends=[2], stopped=None) == [True, False]
    assert cut_off(new, limit=3, ends=None, stopped=torch.tensor([True, False])) == [False, True]
