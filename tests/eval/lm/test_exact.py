"""Laws of asking a model: a document's answer depends on the document alone, and nothing is cut off silently."""

import contextlib

import pytest
import torch
from eval_helpers import tiny_model, tiny_tokenizer
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import sa_patch
from sa_eval.lm.exact import ExactLM
from sa_eval.lm.generation import generation_options
from sa_eval.lm.tokens import TruncationError

TEXT = "The magic number for banjo is 554. Then the clerk examined the clever bundle yesterday."
WORDS = TEXT.split()
STOP = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
SPARSE = [("swa", {}), ("sa", {}), ("sa", {"form": "bucket"}), ("sa+swa", {}), ("moba", {})]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def prompts():
    """Prompts of different lengths, some alike, so that batches need padding."""
    return [" ".join((WORDS * 9)[start : start + 40 + 5 * (start % 7)]) for start in range(9)]


def loglikelihoods(prompts, choices=(" banjo", " clerk", " the clever bundle")):
    return [
        Instance("loglikelihood", {}, (prompt, choice), idx, ("task", doc_id, 1))
        for doc_id, prompt in enumerate(prompts)
        for idx, choice in enumerate(choices)
    ]


def generations(prompts, arguments=STOP):
    return [
        Instance("generate_until", {}, (prompt, arguments), 0, ("task", doc_id, 1))
        for doc_id, prompt in enumerate(prompts)
    ]


def lm(model, batch_size=16):
    return ExactLM(model, tiny_tokenizer(), batch_size=batch_size)


def assert_same_scores(found, wanted):
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    torch.testing.assert_close(
        torch.tensor([score for score, _ in found]), torch.tensor([score for score, _ in wanted]), atol=2e-4, rtol=1e-5
    )


@pytest.mark.parametrize(("mode", "options"), SPARSE)
def test_a_documents_scores_do_not_depend_on_its_batch(model, prompts, mode, options):
    requests = loglikelihoods(prompts)
    with sa_patch.apply(model, mode, 16, **options):
        together = lm(model).loglikelihood(requests)
        alone = [lm(model, batch_size=1).loglikelihood([request])[0] for request in requests]
    assert_same_scores(together, alone)


@pytest.mark.parametrize(("mode", "options"), SPARSE)
def test_a_documents_generated_text_does_not_depend_on_its_batch(model, prompts, mode, options):
    with sa_patch.apply(model, mode, 16, **options):
        together = lm(model).generate_until(generations(prompts))
        alone = [lm(model, batch_size=1).generate_until([request])[0] for request in generations(prompts)]
    assert together == alone


def test_full_attention_scores_equal_stock_lm_eval(model, prompts):
    stock = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=4)
    requests = loglikelihoods(prompts)
    assert_same_scores(lm(model).loglikelihood(requests), stock.loglikelihood(requests, disable_tqdm=True))


def test_full_attention_text_equals_stock_lm_eval(model, prompts):
    stock = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=4)
    wanted = stock.generate_until(generations(prompts), disable_tqdm=True)
    assert lm(model).generate_until(generations(prompts)) == wanted


def test_a_patch_changes_the_scores(model, prompts):
    """Guards the tests above: they would also pass if the patch did nothing."""
    requests = loglikelihoods(prompts)
    with sa_patch.apply(model, "sa", 8):
        sparse = lm(model).loglikelihood(requests)
    full = lm(model).loglikelihood(requests)
    assert max(abs(one[0] - other[0]) for one, other in zip(sparse, full, strict=True)) > 0.1


def test_one_token_choices_of_a_document_cost_one_row(model, prompts, monkeypatch):
    rows = []
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, **inputs: rows.append(len(inputs["input_ids"])) or forward(self, **inputs)
    )
    choices = [
        text for text in (" banjo", " clerk", " number", " is", " the") if len(tiny_tokenizer().encode(text)) == 1
    ]
    assert len(choices) >= 2
    lm(model).loglikelihood(loglikelihoods(prompts[:1], choices))
    assert sum(rows) == 1


def test_only_scored_positions_get_logits(model, prompts, monkeypatch):
    kept = []
    forward = type(model).forward
    monkeypatch.setattr(
        type(model),
        "forward",
        lambda self, **inputs: kept.append((inputs["logits_to_keep"], inputs["use_cache"])) or forward(self, **inputs),
    )
    lm(model).loglikelihood(loglikelihoods(prompts[:1], (" banjo",)))
    assert kept == [(len(tiny_tokenizer().encode(" banjo")), False)]


def test_text_ends_before_its_own_stop_string(model, prompts):
    free = lm(model).generate_until(generations(prompts, {**STOP, "until": []}))
    stop = next(text for text in free if len(text) > 3)[2]
    stopped = lm(model).generate_until(generations(prompts, {**STOP, "until": [stop]}))
    assert stopped == [text.split(stop)[0] for text in free]


@pytest.mark.parametrize("kind", ["loglikelihood", "generation"])
def test_a_document_that_does_not_fit_is_refused_by_name(kind):
    small = ExactLM(tiny_model(positions=32), tiny_tokenizer())
    request = (loglikelihoods if kind == "loglikelihood" else generations)([" ".join(WORDS * 8)])[0]
    request.doc_id = 17
    ask = small.loglikelihood if kind == "loglikelihood" else small.generate_until
    with pytest.raises(TruncationError, match=r"document 17 of task: .* take \d+ tokens, the model holds 32"):
        ask([request])


def test_progress_counts_every_request_once(model, prompts):
    seen = []
    asked = ExactLM(model, tiny_tokenizer(), batch_size=4, progress=seen.append)
    asked.loglikelihood(loglikelihoods(prompts))
    asked.generate_until(generations(prompts))
    assert sum(seen) == len(loglikelihoods(prompts)) + len(prompts)


def test_rolling_loglikelihood_equals_stock_lm_eval(model, prompts):
    requests = [Instance("loglikelihood_rolling", {}, (prompt,), 0, ("task", 0, 1)) for prompt in prompts[:3]]
    stock = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=4).loglikelihood_rolling(
        requests, disable_tqdm=True
    )
    assert lm(model).loglikelihood_rolling(requests) == pytest.approx(stock, rel=1e-4)


def test_sampling_happens_only_when_a_task_asks_for_it():
    assert generation_options({"until": "\n", "max_gen_toks": 5, "temperature": 0.0})["do_sample"] is False
    sampled = generation_options({"do_sample": True, "temperature": 0.7, "max_new_tokens": 3})
    assert sampled == {"do_sample": True, "temperature": 0.7, "until": [], "max_new_tokens": 3}


@pytest.mark.parametrize("mode", [None, "sa", "moba"])
def test_no_logits_of_a_whole_prompt_are_ever_made(model, prompts, mode):
    """At 32K tokens and 152K words, [length, vocabulary] would be 10 GB; the output layer sees a few positions."""
    seen = []
    hook = model.lm_head.register_forward_pre_hook(lambda head, given: seen.append(given[0].shape[:-1].numel()))
    long = [prompt for prompt in prompts if len(prompt.split()) > 50]
    try:
        with contextlib.nullcontext() if mode is None else sa_patch.apply(model, mode, 16):
            asked = lm(model)
            asked.generate_until(generations(long))
            asked.loglikelihood(loglikelihoods(long))
            asked.first_token_log_probs([asked.encoded_prompt(request) for request in generations(long)])
    finally:
        hook.remove()
    longest_choice = len(tiny_tokenizer().encode(" the clever bundle"))
    assert len(seen) > 10 and max(seen) <= asked.batch_size * longest_choice < len(tiny_tokenizer().encode(long[0]))
