"""What a model answers, a prompt's logits and the tokens that follow, and what it has to answer."""

import torch
from patch_cases import make_variant

import sa_patch


def logits(model, tokens, **kwargs):
    with torch.no_grad():
        return model(input_ids=tokens, **kwargs).logits


def greedy(model, tokens):
    """The 4 tokens that follow, per row."""
    return model.generate(input_ids=tokens, max_new_tokens=4, do_sample=False)[:, -4:].tolist()


def answers(model, tokens):
    return logits(model, tokens), greedy(model, tokens)


def patched_answers(model, tokens, case, kernel="auto"):
    """Answers under a patch that is gone afterwards, and that ran."""
    with sa_patch.apply(model, variant=make_variant(case), kernel=kernel) as patch:
        found = answers(model, tokens)
        assert patch.calls[0]["sparse_prefill"] == 2
    return found


def assert_same(found, expected):
    """Bit for bit the same logits, and the same tokens."""
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


def assert_close(found, expected, tolerance=1e-4):
    """The same logits to rounding, and the same tokens."""
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    assert found[1] == expected[1]
