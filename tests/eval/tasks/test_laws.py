"""The laws of the offline suite: every document is reproducible, full to its length, answerable, and held out."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import pairwise

import pytest

from sa_eval.tasks import TASKS, document, scene
from sa_eval.tasks.split import in_split, key_values
from sa_eval.tasks.words import KEYS, NUMBERS, TOPICS, vocabulary

_WORD = re.compile(r" ?[A-Za-z]+| ?\d{1,3}|\n| ?[^\sA-Za-z\d]+|\s+")


def words(text: str) -> int:
    """About what the bundled tokenizer counts."""
    return len(_WORD.findall(text))


def pieces(text: str) -> int:
    """A coarse tokenizer of another kind: a start token, then three characters at a time across word borders."""
    return 1 + (len(text) + 2) // 3


def digits(text: str) -> int:
    """Every digit alone, long words in several pieces, as large models' tokenizers do."""
    return sum(
        1 if not w.strip().isdigit() else len(w) for w in re.findall(r" ?[A-Za-z]{1,5}| ?\d{1,3}|\s|[^\s\w]", text)
    )


COUNTERS = (words, pieces, digits, len)
EVERY = pytest.mark.parametrize("task", list(TASKS))


def continuation(task: str, made, count) -> int:
    if TASKS[task].output == "generate":
        return TASKS[task].max_new_tokens
    return max(count(choice) - count("") for choice in made.choices)


@EVERY
def test_the_same_arguments_give_the_same_document_whatever_ran_before(task):
    first = [document(task, words, 300, 5, index) for index in range(4)]
    random.seed(1)
    for other in TASKS:
        document(other, words, 400, 1, 2)
    assert [document(task, words, 300, 5, index) for index in reversed(range(4))] == first[::-1]


@EVERY
def test_seed_index_length_and_split_each_give_another_document(task):
    made = {document(task, words, 400, 0, index).prompt for index in range(60)}
    made |= {document(task, words, 400, 1, 0).prompt, document(task, words, 400, 0, 0, "train").prompt}
    assert len(made) == 62


@EVERY
@pytest.mark.parametrize("count", COUNTERS)
def test_prompt_and_continuation_fill_the_length_and_never_exceed_it(task, count):
    for length in (520, 1024, 3000):
        for index in range(6):
            made = document(task, count, length, 3, index)
            used = count(made.prompt) + continuation(task, made, count)
            assert used <= length
            assert count(made.prompt) >= 0.95 * length - max(
                TASKS[task].max_new_tokens, continuation(task, made, count)
            )


@EVERY
def test_answers_stand_in_the_prompt_and_it_has_no_trailing_space(task):
    for index in range(20):
        made = document(task, words, 512, 7, index)
        assert made.prompt == made.prompt.rstrip()
        options = made.answers or tuple(choice.strip() for choice in made.choices)
        assert options and all(option in made.prompt for option in options)
        assert len(set(options)) == len(options)
        assert made.depth is None or 0 <= made.depth <= 1


@EVERY
def test_every_question_of_a_scene_has_the_target_that_its_answers_name(task):
    made = scene(task, words, 512, 0, 0, "train")
    for question in made.questions:
        assert question.target.startswith(" ")
        assert all(answer in question.target for answer in question.answers)
        assert question.gold < 0 or question.choices[question.gold] == question.target
        assert question.evidence in made.context


def test_the_gold_choice_is_spread_evenly():
    gold = Counter()
    for index in range(400):
        made = document("majority_topic", words, 256, 0, index)
        assert 4 <= len(made.choices) <= 8
        gold[made.gold / len(made.choices) < 0.5] += 1
    assert abs(gold[True] - gold[False]) < 90


def test_no_pair_of_an_evaluation_document_occurs_in_training():
    for task, pattern in (("kv_retrieval", r"(\w+): (\d+),"), ("needle_multikey", r"number for (\w+) is (\d+)\.")):
        for split in ("train", "eval"):
            found = re.findall(pattern, document(task, words, 2048, 0, 0, split).prompt)
            assert len(found) > 50
            assert all(in_split(split, key, value) for key, value in found)
            assert not any(in_split("train" if split == "eval" else "eval", key, value) for key, value in found)


def test_a_chain_is_copied_on_one_link_after_another_and_every_link_is_of_the_split():
    for split, other in (("train", "eval"), ("eval", "train")):
        for index in range(10):
            made = scene("variable_tracking", words, 2048, 0, index, split)
            links = re.findall(r"Copy (\w+) to (\w+)\.", made.context)
            following = dict(links)
            assert len(following) == len(links) == 4 * len(made.questions) >= 40
            assert len(set(following.values())) == len(links)  # no word is reached twice
            for question in made.questions:
                chain = [re.findall(r"\d+", question.tail)[0]]
                while chain[-1] in following:
                    chain.append(following[chain[-1]])
                assert question.answers == tuple(chain[1:])
                places = [made.context.index(f"Copy {one} to {two}.") for one, two in pairwise(chain)]
                assert places == sorted(places)
            pairs = [(two, one) if one.isdigit() else (one, two) for one, two in links]
            assert all(in_split(split, *pair) and not in_split(other, *pair) for pair in pairs)


def test_an_asked_value_is_unique_in_its_document():
    for index in range(10):
        made = document("kv_retrieval", words, 2048, 0, index)
        assert made.prompt.count(made.answers[0]) == 1


def test_the_majority_topic_is_clearly_ahead():
    by_word = {word: topic for topic, list_ in TOPICS.items() for word in list_}
    for index in range(30):
        made = document("majority_topic", words, 1024, 0, index)
        context = made.prompt.split("\nQuestion")[0]
        seen = Counter(by_word[word] for word in re.findall(r"\w+", context) if word in by_word)
        (first, most), (_, next_) = seen.most_common(2)
        assert " " + first == made.choices[made.gold]
        assert most >= 1.5 * next_


def test_the_three_frequent_words_are_clearly_ahead():
    for index in range(30):
        made = document("frequent_words", words, 1024, 0, index)
        listed = made.prompt.split("The list: ")[1].split(".\n")[0].split()
        seen = Counter(listed).most_common(4)
        assert {word for word, _ in seen[:3]} == set(made.answers)
        assert seen[2][1] >= 2 * seen[3][1]


@EVERY
def test_too_short_a_length_names_the_smallest_that_works(task):
    message = rf"{task} does not fit into 20 tokens.*smallest workable length is \d+"
    with pytest.raises(ValueError, match=message) as info:
        document(task, words, 20, 0, 0)
    least = int(re.findall(r"\d+", str(info.value))[-1])
    assert document(task, words, least, 0, 0)


def test_an_unknown_task_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"needle_singel.*needle_single"):
        document("needle_singel", words, 512, 0, 0)


def test_word_lists_are_disjoint_and_no_key_is_part_of_another():
    assert not set(KEYS) & set(vocabulary()[len(KEYS) :])
    assert not [key for key in KEYS if any(key != other and key in other for other in KEYS)]
    assert len(set(vocabulary())) == len(vocabulary())


def test_keys_of_two_words_take_over_where_single_ones_run_out():
    pairs = key_values(random.Random(0), "eval", 2000)
    assert len({key for key, _ in pairs}) == 2000
    assert Counter(value for _, value in pairs)[pairs[0][1]] == 1
    assert {value for _, value in pairs} <= set(NUMBERS)
