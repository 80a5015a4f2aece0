"""Laws of chunks: every document in one, and batches as large as the device and the prompts make sensible."""

from types import SimpleNamespace

import pytest

from sa_eval.loading import models
from sa_eval.run import chunks
from sa_eval.settings.config import settings_from


@pytest.mark.parametrize(
    ("device", "tokens", "rows"),
    [("cpu", 84, 12), ("cpu", 10, 16), ("cpu", 256, 4), ("cpu", 1024, 2), ("cpu", 9000, 2), ("cuda:0", 9000, 16)],
)
def test_short_prompts_share_a_batch_on_a_cpu_and_long_ones_do_not(device, tokens, rows):
    assert models.pick_batch_size(settings_from({}), device, tokens) == rows
    assert models.pick_batch_size(settings_from({"batch_size": 5}), device, tokens) == 5


def test_every_document_is_in_one_chunk_whose_batches_suit_its_tasks_prompts():
    short = SimpleNamespace(key="short", prompt_tokens=[80, 84, 90] * 300, num_documents=900)
    long = SimpleNamespace(key="long", prompt_tokens=[2000] * 5, num_documents=5)
    arm = SimpleNamespace(name="full", seeds=(0,))
    found = chunks.chunks_of(
        [arm], [short, long], lambda tokens: models.pick_batch_size(settings_from({}), "cpu", tokens)
    )
    asked = [(chunk.task.key, index) for chunk in found for index in chunk.indices]
    assert asked == [("short", index) for index in range(900)] + [("long", index) for index in range(5)]
    assert {(chunk.task.key, chunk.batch_size) for chunk in found} == {("short", 12), ("long", 2)}
    assert all(len(chunk.indices) % chunk.batch_size == 0 for chunk in found[:-2])
