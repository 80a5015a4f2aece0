"""`generate` in all its ways gives what the definition gives, or is refused before anything is computed.

The definition: the prompt with the reference kernel; with decode='full', what follows reads everything with the model's
own attention; with decode='sparse', the whole text is a prompt.
"""

import copy
import pickle
import threading
import warnings
from pathlib import Path

import pytest
import torch
from answers import logits
from models import make_model
from patch_cases import make_variant
from support import close
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, TextIteratorStreamer, TextStreamer

import sa_patch

CASES = [(case, "full") for case in ("swa", "sa", "sa-bucket", "sa-dyadic", "sa-dyadic-bucket", "sa+swa", "moba")]
CASES += [(case, "sparse") for case in ("swa", "sa-dyadic", "sa-dyadic-bucket", "sa+swa-dyadic", "moba")]
variants = pytest.mark.parametrize(("case", "decode"), CASES)
few = pytest.mark.parametrize(("case", "decode"), [("sa", "full"), ("sa-dyadic-bucket", "sparse"), ("moba", "full")])
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
TINY = Path(__file__).parents[3] / "eval" / "assets" / "qwen3-tiny"


def text(length, rows=1, seed=0):
    return torch.randint(1, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def definition(model, variant, prompt, answer):
    """Logits before each token of an answer: [len(answer), vocabulary], from an unpatched model."""
    prompt, answer = prompt.view(1, -1), answer.view(1, -1)
    if variant.decode == "sparse":
        with sa_patch.apply(model, variant=variant, kernel="reference"):
            return logits(model, torch.cat([prompt, answer], dim=1))[0, prompt.shape[1] - 1 : -1]
    cache = DynamicCache(config=model.config)
    with sa_patch.apply(model, variant=variant, kernel="reference"):
        first = logits(model, prompt, past_key_values=cache)[:, -1:]
    rest = [logits(model, answer[:, :-1], past_key_values=cache)] if answer.shape[1] > 1 else []
    return torch.cat([first, *rest], dim=1)[0]


def generate(model, variant, prompt, steps=6, **options):
    """The answers alone: [rows, steps]."""
    with sa_patch.apply(model, variant=variant):
        return model.generate(prompt, max_new_tokens=steps, **options)[:, prompt.shape[1] :]


# Decoding strategies


@pytest.mark.cell("Generation", "greedy")
@variants
def test_greedy_takes_the_best_token_of_the_definition(model, case, decode):
    variant = make_variant(case, decode=decode)
    for length in (1, 48, 70):
        answer = generate(model, variant, text(length), do_sample=False)[0]
        assert torch.equal(definition(model, variant, text(length), answer).argmax(-1), answer)


@pytest.mark.cell("Generation", "sampling, and num_return_sequences: the same seed, the same tokens")
@variants
def test_sampling_draws_from_the_definition(model, case, decode):
    variant, prompt = make_variant(case, decode=decode), text(48)
    torch.manual_seed(5)
    answers = generate(model, variant, prompt, do_sample=True, temperature=3.0, top_k=20, num_return_sequences=3)
    assert len({tuple(answer.tolist()) for answer in answers}) == 3
    scores = torch.stack([definition(model, variant, prompt, answer) for answer in answers]) / 3.0
    scores[scores < scores.topk(20).values[..., -1:]] = -torch.inf
    torch.manual_seed(5)
    for step in range(answers.shape[1]):
        drawn = torch.multinomial(scores[:, step].softmax(-1), num_samples=1)[:, 0]
        assert torch.equal(drawn, answers[:, step])


@pytest.mark.cell("Generation", "beam search, num_return_sequences, left-padded batches, static caches")
@variants
def test_beams_have_the_scores_of_the_definition(model, case, decode):
    variant, long, short = make_variant(case, decode=decode), text(48), text(20, seed=4)
    prompts = torch.cat([long, torch.cat([torch.zeros(1, 28, dtype=torch.long), short], dim=1)])
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 1.0}
    with sa_patch.apply(model, variant=variant):
        found = model.generate(prompts, attention_mask=(prompts != 0).long(), **options)
        static = model.generate(prompts, attention_mask=(prompts != 0).long(), cache_implementation="static", **options)
        alone = [model.generate(row, **options).sequences[:, -5:] for row in (long, short)]
    answers = found.sequences[:, -5:]
    assert torch.equal(answers, torch.cat(alone)) and torch.equal(static.sequences, found.sequences)
    scores = []
    for row, answer in zip((long, long, short, short), answers, strict=True):
        chances = definition(model, variant, row, answer).log_softmax(-1)
        scores.append(chances.gather(1, answer[:, None]).sum() / 5)
    close(found.sequences_scores, torch.stack(scores), "scores of beams", **CLOSE)
    assert (found.sequences_scores[::2] > found.sequences_scores[1::2]).all()


@pytest.mark.cell("Generation", "classifier-free guidance")
@few
def test_guidance_pushes_away_from_the_definition_without_the_prompt(model, case, decode):
    variant, prompt = make_variant(case, decode=decode), text(48)
    answer = generate(model, variant, prompt, do_sample=False, guidance_scale=1.5)[0]
    told, untold = (definition(model, variant, known, answer).log_softmax(-1) for known in (prompt, prompt[:, -1:]))
    assert torch.equal((untold + 1.5 * (told - untold)).argmax(-1), answer)


@pytest.mark.cell(
    "Generation", "assisted decoding and prompt lookup with decode='full', or where later tokens change keys"
)
@pytest.mark.parametrize("helper", ["prompt_lookup_num_tokens", "assistant_model"])
def test_guesses_are_refused_where_they_would_be_read_as_a_prompt(model, helper, refused):
    options = {"do_sample": False, helper: 4 if helper == "prompt_lookup_num_tokens" else make_model()}
    for case, decode, reason in (("swa", "full", "got 'full'"), ("sa", "sparse", "horizon='length' permutes")):
        with refused(NotImplementedError, match=f"assisted_generation .* reads guesses .* {reason}"):
            generate(model, make_variant(case, decode=decode), text(20), **options)


@pytest.mark.cell("Generation", "a model that drafts with its own first layers (assistant_early_exit), decode='sparse'")
@pytest.mark.parametrize("case", ["swa", "sa-dyadic", "sa-dyadic-bucket", "moba"])
def test_early_exits_change_no_answer(model, case):
    variant, prompt = make_variant(case, decode="sparse"), text(15).repeat(1, 3)
    options = {"max_new_tokens": 12, "do_sample": False}
    try:
        model.generate(prompt, assistant_early_exit=1, **options)
    except TypeError as error:
        pytest.skip(f"this transformers can't do it for unpatched models either: {error}")
    with sa_patch.apply(model, variant=variant):
        expected = model.generate(prompt, **options)
        assert torch.equal(model.generate(prompt, assistant_early_exit=1, **options), expected)


@pytest.mark.cell("Generation", "a patched model as the assistant of another")
@pytest.mark.parametrize(("case", "decode"), [("swa", "full"), ("moba", "sparse"), ("sa-dyadic", "sparse")])
def test_a_patched_assistant_changes_no_answer(model, case, decode):
    prompt, assistant = text(15).repeat(1, 3), make_model(num_hidden_layers=1)
    expected = model.generate(prompt, max_new_tokens=12, do_sample=False)
    with sa_patch.apply(assistant, variant=make_variant(case, decode=decode)) as patch:
        found = model.generate(prompt, max_new_tokens=12, do_sample=False, assistant_model=assistant)
        assert sum(patch.calls[0].values()) > 0
    assert torch.equal(found, expected)


@pytest.mark.cell("Generation", "contrastive, DoLa, group and constrained beam search (moved out of transformers)")
@pytest.mark.parametrize(
    "options",
    [
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "low"},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beams": 2, "force_words_ids": [[3]]},
    ],
    ids=str,
)
def test_code_that_transformers_downloads_is_refused(model, options, refused):
    """Transformers itself refuses it without trust_remote_code; with it, we do, before anything is downloaded."""
    with pytest.raises(ValueError, match="requires `trust_remote_code=True`"):
        generate(model, make_variant("swa"), text(20), **options)
    with refused(NotImplementedError, match="runs code that transformers downloads, untested with sa_patch"):
        generate(model, make_variant("swa"), text(20), trust_remote_code=True, **options)


@pytest.mark.cell("Generation", "custom_generate with a function of one's own")
@few
def test_a_decoding_loop_of_ones_own_runs_the_patch(model, case, decode):
    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs):
        cache = inputs["cache"] if "cache" in inputs else inputs["past_key_values"]  # named so by transformers 5.24
        for step in range(6):
            new = input_ids if step == 0 else input_ids[:, -1:]
            best = model(new, past_key_values=cache).logits[:, -1:].argmax(-1)
            input_ids = torch.cat([input_ids, best], dim=1)
        return input_ids

    variant = make_variant(case, decode=decode)
    expected = generate(model, variant, text(48), do_sample=False)
    assert torch.equal(generate(model, variant, text(48), do_sample=False, custom_generate=loop), expected)


@pytest.mark.cell("Generation", "one thread writes while another reads a prompt")
@pytest.mark.parametrize("case", ["swa", "sa", "moba"])
def test_a_prompt_in_one_thread_is_none_in_another(model, case):
    reading, written = threading.Event(), threading.Event()

    def wait(module, inputs):
        if threading.current_thread() is reader:
            reading.set()
            assert written.wait(timeout=60)

    with sa_patch.apply(model, variant=make_variant(case)):
        expected = model.generate(text(48), max_new_tokens=6, do_sample=False)
        reader = threading.Thread(target=model.generate, args=(text(60),), kwargs={"max_new_tokens": 1})
        hook = model.lm_head.register_forward_pre_hook(wait)
        reader.start()
        try:
            assert reading.wait(timeout=60)
            assert torch.equal(model.generate(text(48), max_new_tokens=6, do_sample=False), expected)
        finally:
            written.set()
            reader.join()
            hook.remove()


# What goes in and comes out


@pytest.mark.cell("Generation", "scores, logits and hidden states of generate")
@variants
def test_generate_returns_the_logits_of_the_definition(model, case, decode):
    variant, prompt = make_variant(case, decode=decode), text(48)
    with sa_patch.apply(model, variant=variant):
        options = {"output_scores": True, "output_logits": True, "output_hidden_states": True}
        found = model.generate(prompt, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, **options)
    expected = definition(model, variant, prompt, found.sequences[0, 48:])
    for values in (found.scores, found.logits):
        close(torch.cat(values), expected, "logits of generate", **CLOSE)
    last = torch.cat([states[-1][:, -1] for states in found.hidden_states])
    close(model.lm_head(last).detach(), expected, "logits of generate", **CLOSE)
    assert [len(states) for states in found.hidden_states] == [4] * 6


@pytest.mark.cell("Generation", "output_attentions of generate")
def test_attentions_of_generate_are_refused(model, refused):
    with refused(NotImplementedError, match="output_attentions=True is not supported"):
        generate(model, make_variant("sa"), text(20), output_attentions=True, return_dict_in_generate=True)


@pytest.mark.cell("Generation", "inputs_embeds instead of input_ids, padded batches too")
@few
def test_embeddings_give_what_their_tokens_give(model, case, decode):
    tokens, mask = text(48, rows=2), torch.ones(2, 48, dtype=torch.long)
    mask[1, :28] = 0
    embeddings = model.get_input_embeddings()(tokens).detach()
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    with sa_patch.apply(model, variant=make_variant(case, decode=decode)):
        expected = model.generate(tokens, **options)[:, 48:]
        assert torch.equal(model.generate(inputs_embeds=embeddings, **options), expected)
        found = model(inputs_embeds=embeddings, attention_mask=mask).logits.detach()
        assert torch.equal(found, logits(model, tokens, attention_mask=mask))


@pytest.mark.cell("Generation", "logits_to_keep")
@few
def test_logits_to_keep_are_those_of_the_whole(model, case, decode):
    tokens = text(48)
    with sa_patch.apply(model, variant=make_variant(case, decode=decode)):
        whole = logits(model, tokens)
        for keep, kept in ((1, slice(47, None)), (5, slice(43, None)), (torch.tensor([3, 40]), [3, 40])):
            close(logits(model, tokens, logits_to_keep=keep), whole[:, kept], "logits_to_keep", rtol=1e-5, atol=1e-5)


@pytest.mark.cell("Generation", "max_new_tokens=1, stopping criteria, end-of-text tokens in a batch")
@few
def test_generation_stops_where_it_is_told_to(model, case, decode):
    variant, tokens = make_variant(case, decode=decode), text(48, rows=2)
    expected = generate(model, variant, tokens, steps=8, do_sample=False)
    assert torch.equal(generate(model, variant, tokens, steps=1, do_sample=False), expected[:, :1])
    stop = [lambda ids, scores, **_: torch.full((len(ids),), ids.shape[1] >= 51)]
    found = generate(model, variant, tokens, steps=8, do_sample=False, stopping_criteria=stop)
    assert torch.equal(found, expected[:, :3])
    end = int(expected[0, 2])
    found = generate(model, variant, tokens, steps=8, do_sample=False, eos_token_id=end)
    for row, whole in zip(found.tolist(), expected.tolist(), strict=True):
        length = whole.index(end) + 1 if end in whole else 8
        assert row[:length] == whole[:length] and not any(row[length:])


@pytest.mark.cell("Generation", "an empty prompt")
def test_an_empty_prompt_is_refused(model, refused):
    empty = torch.zeros(1, 0, dtype=torch.long)
    with refused(ValueError, match="this call has no tokens"):
        generate(model, make_variant("sa"), empty)
    with sa_patch.apply(model, "sa", 12), refused(ValueError, match="this call has no tokens"):
        logits(model, empty)


# Text: the bundled tokenizer


@pytest.fixture(scope="module")
def writer():
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(TINY)


@pytest.mark.cell("Generation", "streaming (TextStreamer, TextIteratorStreamer)")
def test_a_stream_is_the_text_of_generate(writer, capsys):
    model, tokenizer = writer
    inputs = tokenizer("Anna lives in Rome. Bob lives in Paris. " * 5, return_tensors="pt")
    length = inputs.input_ids.shape[1]
    options = {**inputs, "max_new_tokens": 12, "do_sample": False}
    with sa_patch.apply(model, "sa", 16):
        expected = tokenizer.decode(model.generate(**options)[0, length:])
        pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        thread = threading.Thread(target=model.generate, kwargs={**options, "streamer": pieces})
        thread.start()
        assert "".join(pieces) == expected
        thread.join()
        capsys.readouterr()
        model.generate(**options, streamer=TextStreamer(tokenizer, skip_prompt=True))
        assert capsys.readouterr().out.rstrip("\n") == expected.rstrip("\n")
    assert len(expected) > 12


@pytest.mark.cell("Generation", "stop_strings")
def test_generation_stops_at_a_string(writer):
    model, tokenizer = writer
    inputs = tokenizer("Anna lives in Rome. Bob lives in Paris. " * 5, return_tensors="pt")
    length = inputs.input_ids.shape[1]
    with sa_patch.apply(model, "sa", 16):
        whole = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, length:]
        string = tokenizer.decode(whole[4:6])
        options = {"max_new_tokens": 12, "do_sample": False, "stop_strings": [string], "tokenizer": tokenizer}
        found = model.generate(**inputs, **options)[0, length:]
    assert len(found) < 12 and torch.equal(found, whole[: len(found)]) and string in tokenizer.decode(found)


@pytest.mark.cell("Generation", "chat templates, several turns on one cache")
def test_a_chat_goes_on_from_its_cache(writer):
    model, tokenizer = writer
    template = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}assistant: "
    said = [{"role": "user", "content": "Anna lives in Rome. Bob lives in Paris. " * 3}]
    options = {"chat_template": template, "return_tensors": "pt", "return_dict": True}
    with sa_patch.apply(model, "sa", 16, horizon="dyadic", decode="sparse"):
        cache, held, reused = DynamicCache(config=model.config), torch.zeros(0, dtype=torch.long), []
        for _ in range(3):
            inputs = tokenizer.apply_chat_template(said, **options)
            prompt = inputs["input_ids"][0]
            # The answer may be cut into other tokens when it is read again: the cache keeps what both begin with.
            both = min(len(prompt), len(held))
            kept = int((prompt[:both] == held[:both]).long().cumprod(0).sum())
            cache.crop(kept - len(held))
            reused.append(kept)
            found = model.generate(**inputs, past_key_values=cache, max_new_tokens=8, do_sample=False)[0]
            assert torch.equal(found, model.generate(**inputs, max_new_tokens=8, do_sample=False)[0])
            held = found[:-1]  # the last token was never read
            answer = tokenizer.decode(found[len(prompt) :])
            said += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Where does Anna live?"}]
    assert reused[0] == 0 and 40 < reused[1] < reused[2]


# Another attention behind the patch


@pytest.mark.cell("Generation", "continuous batching (generate_batch, init_continuous_batching, 'paged')")
def test_continuous_batching_is_refused_up_front(model, refused):
    prompts = text(20).tolist()
    calls = [
        lambda: model.generate_batch(prompts, max_new_tokens=2),
        lambda: model.init_continuous_batching(),
        lambda: model.continuous_batching_context_manager().__enter__(),
        lambda: model.generate(text(20), max_new_tokens=2, cache_implementation="paged"),
    ]
    for variant in (make_variant("sa"), make_variant("full")):
        with sa_patch.apply(model, variant=variant) as patch:
            for call in calls:
                with refused(NotImplementedError, match="continuous batching .* use generate with a padded batch"):
                    call()
            assert patch.active
    assert "init_continuous_batching" not in model.__dict__


def told(model, tokens):
    """The warnings of two forwards."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [logits(model, tokens) for _ in range(2)]
    assert torch.equal(*found)
    return found[0], [str(entry.message) for entry in caught]


@pytest.mark.cell("Generation", "set_attn_implementation behind the patch: one warning, and the patch can run again")
def test_an_attention_set_behind_the_patch_is_told_once(model):
    tokens = text(48)
    before = logits(model, tokens)
    patch = sa_patch.apply(model, "sa", 12)
    expected, silence = told(model, tokens)
    assert not silence
    ways = [
        lambda twin: twin.set_attn_implementation("sdpa"),
        lambda twin: setattr(twin.config, "_attn_implementation", "sdpa"),
    ]
    for change in ways:
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
            change(twin)
            found, messages = told(twin, tokens)
            assert torch.equal(found, before) and len(messages) == 1
            assert "does not run: its attention implementation was set to 'sdpa' behind it" in messages[0]
            twin.set_attn_implementation("sa_patch")  # what the message says
            assert told(twin, tokens)[1] == [] and torch.equal(logits(twin, tokens), expected)
    assert patch.active
    patch.restore()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(logits(model, tokens), before)


def test_a_hook_of_ones_own_survives_the_patch(qwen3):
    seen = []
    backbone = qwen3.model
    handle = backbone.register_forward_pre_hook(lambda module, inputs: seen.append(1))
    sa_patch.apply(qwen3, "sa", 12).restore()
    sa_patch.apply(qwen3, "sa", 12)
    logits(qwen3, text(8))
    assert len(seen) == 1 and len(backbone._forward_pre_hooks) == 2
    sa_patch.restore(qwen3)
    handle.remove()
    assert not backbone._forward_pre_hooks
