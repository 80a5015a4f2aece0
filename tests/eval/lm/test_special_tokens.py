"""Laws of special tokens: what a tokenizer puts after a text is not read, what it puts before is not scored twice."""

import pytest
import torch
from eval_helpers import tiny_model, tiny_tokenizer
from lm_eval.api.instance import Instance
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from sa_eval.documents import offline
from sa_eval.fidelity import texts
from sa_eval.lm import special_tokens
from sa_eval.lm.exact import ExactLM
from sa_eval.lm.tokens import RequestError
from sa_eval.settings.config import settings_from
from sa_eval.settings.values import SettingsError

CONTEXT, CONTINUATION = "the river stone market window", " garden letter"
ENDING = "$A <end>"
BEGINNING = "<end> $A"
BOTH = "<end> $A <end>"
PLAIN = None


def tokenizer(template=PLAIN, **options):
    """The small tokenizer, with this post-processor; <end> is also what begins a text."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=type(tiny_tokenizer().backend_tokenizer).from_str(tiny_tokenizer().backend_tokenizer.to_str()),
        **{"pad_token": "<pad>", "eos_token": "<end>", **options},
    )
    if template:
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<end>", made.convert_tokens_to_ids("<end>"))]
        )
    return made


@pytest.fixture(scope="module")
def model():
    return tiny_model(positions=128)


def by_hand(model, context, continuation):
    """The plain model's log-probability of a continuation, token by token."""
    with torch.inference_mode():
        log_probs = model(torch.tensor([[*context, *continuation]])).logits[0].log_softmax(-1)
    return sum(float(log_probs[len(context) - 1 + place, token]) for place, token in enumerate(continuation))


def plain(text):
    return tiny_tokenizer().encode(text)


END = tiny_tokenizer().eos_token_id


def loglikelihood(context, continuation, idx=0, doc_id=0):
    return Instance("loglikelihood", {}, (context, continuation), idx, ("task", doc_id, 1))


@pytest.mark.parametrize("template", [PLAIN, ENDING, BEGINNING, BOTH])
def test_a_loglikelihood_is_the_plain_models_whatever_the_tokenizer_puts_after_a_text(model, template):
    start = [END] if template in (BEGINNING, BOTH) else []
    ((found, _),) = ExactLM(model, tokenizer(template)).loglikelihood([loglikelihood(CONTEXT, CONTINUATION)])
    assert found == pytest.approx(by_hand(model, [*start, *plain(CONTEXT)], plain(CONTINUATION)), abs=1e-3)


@pytest.mark.parametrize("template", [PLAIN, ENDING, BEGINNING, BOTH])
def test_a_rolling_loglikelihood_scores_every_token_of_the_text_once(model, template):
    text = " ".join([CONTEXT, CONTINUATION] * 2)
    (found,) = ExactLM(model, tokenizer(template)).loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (text,), 0, ("task", 0, 1))]
    )
    assert found == pytest.approx(by_hand(model, [END], plain(text)), abs=1e-3)


@pytest.mark.parametrize("template", [PLAIN, BEGINNING, BOTH])
def test_windows_of_a_long_text_score_every_token_once(template):
    model = tiny_model(positions=24)
    ids = plain(" ".join([CONTEXT] * 6))[:60]
    text = tiny_tokenizer().decode(ids)
    assert plain(text) == ids and len(ids) == 60
    wanted = by_hand(model, [END], ids[:24])  # with windows of 24: 24 tokens, 24 more, the last 12 with their context
    wanted += by_hand(model, ids[23:24], ids[24:48]) + by_hand(model, ids[35:48], ids[48:60])
    (found,) = ExactLM(model, tokenizer(template)).loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (text,), 0, ("task", 0, 1))]
    )
    assert found == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("template", [ENDING, BOTH])
def test_a_generated_answer_goes_on_from_the_prompt(model, template):
    request = Instance("generate_until", {}, (CONTEXT, {"max_gen_toks": 6}), 0, ("task", 0, 1))
    without = tokenizer(BEGINNING if template == BOTH else PLAIN)
    assert ExactLM(model, tokenizer(template)).generate_until([request]) == ExactLM(model, without).generate_until(
        [request]
    )


def test_an_end_that_the_text_itself_names_stays(model):
    lm = ExactLM(model, tokenizer(ENDING))
    assert lm.tok_encode(f"{CONTEXT}<end>") == [*plain(CONTEXT), END] and lm.tok_encode("") == []


def test_documents_of_the_offline_suite_are_the_same_with_an_appended_end(model):
    settings = settings_from({"num_samples": 2, "lengths": [128]})
    found = [
        offline.prepare_offline("cloze", 128, settings, ExactLM(model, tokenizer(template)))
        for template in (PLAIN, ENDING)
    ]
    assert found[0].hashes == found[1].hashes and found[0].prompt_tokens == found[1].prompt_tokens


@pytest.mark.parametrize(("template", "start"), [(PLAIN, []), (ENDING, []), (BOTH, [END])])
def test_passages_begin_as_texts_do_and_never_end_as_they_do(template, start):
    text = texts.Text("text", " ".join([CONTEXT] * 20), "")
    passages = texts.cut([text], tokenizer(template), 40, None).passages
    assert len(passages) > 2
    assert all(passage.ids[: len(start)] == tuple(start) and END not in passage.ids[1:] for passage in passages)


def test_a_tokenizer_that_changes_a_texts_own_tokens_is_refused_by_name():
    class Odd:
        name_or_path = "odd-tokenizer"

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [5, 6] if add_special_tokens else [7]}

    with pytest.raises(SettingsError, match=r"tokenizer 'odd-tokenizer' gives \[5, 6\] for 'text' and \[7\] without"):
        special_tokens.around(Odd())


@pytest.mark.parametrize(("context", "continuation"), [("one", ""), ("", ""), ("  ", ""), ("one ", ""), ("", "<end>")])
def test_a_continuation_without_tokens_is_an_error_that_names_document_and_choice(model, context, continuation):
    requests = [loglikelihood(context, " two"), loglikelihood(context, continuation, idx=1, doc_id=7)]
    with pytest.raises(RequestError, match=rf"document 7 of task: choice 1 \('{continuation}'\) has no tokens"):
        ExactLM(model, tokenizer()).loglikelihood(requests)
    with pytest.raises(RequestError, match=r"document 7 of task: choice 1 .* has no tokens"):
        ExactLM(model, tokenizer()).loglikelihood(requests[1:])


def test_an_empty_rolling_text_is_an_error_that_names_the_document(model):
    with pytest.raises(RequestError, match="document 3 of task: its text has no tokens"):
        ExactLM(model, tokenizer()).loglikelihood_rolling(
            [Instance("loglikelihood_rolling", {}, ("",), 0, ("task", 3, 1))]
        )


def test_a_context_of_spaces_is_an_empty_one_before_the_same_text(model):
    scores = ExactLM(model, tokenizer()).loglikelihood(
        [loglikelihood(*pair) for pair in (("  ", "market"), ("", "  market"), (" ", " market"))]
    )
    assert scores == [pytest.approx(scores[0])] * 3
    assert scores[0][0] == pytest.approx(by_hand(model, [END], plain("  market")), abs=1e-3)


def test_an_empty_prompt_is_generated_from_as_an_empty_context_is_scored(model):
    request = Instance("generate_until", {}, ("", {"max_gen_toks": 5}), 0, ("task", 0, 1))
    with torch.inference_mode():
        ids = model.generate(torch.tensor([[END]]), max_new_tokens=5, do_sample=False, eos_token_id=END, pad_token_id=0)
    assert ExactLM(model, tokenizer()).generate_until([request]) == [
        tokenizer().decode(ids[0, 1:], skip_special_tokens=True)
    ]


def test_nothing_to_begin_with_is_an_error_that_names_the_way_out(model):
    lm = ExactLM(model, tokenizer(eos_token=None))
    prompt = Instance("generate_until", {}, ("one", {"max_gen_toks": 2}), 0, ("task", 0, 1))
    assert len(lm.generate_until([prompt])) == 1
    empty = Instance("generate_until", {}, ("", {"max_gen_toks": 2}), 0, ("task", 4, 1))
    with pytest.raises(RequestError, match=r"document 4 of task begins with nothing.*set bos_token"):
        lm.generate_until([empty])
