"""Prompts have the length that is asked for, and leave when they should."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from pathlib import Path

import pytest

from appliance.bench.vocabulary import Vocabulary, VocabularyError
from appliance.bench.words import WORDS
from appliance.bench.workload import (
    Shape,
    WorkloadError,
    departures,
    prompts_of_file,
    random_texts,
    random_token_ids,
)


class Splitting:
    """Counts a token a word, two for the words in `split`, and `special` at the beginning."""

    def __init__(self, split: set[str], special: int) -> None:
        self.split, self.special, self.calls = split, special, 0

    async def count(self, text: str) -> int:
        self.calls += 1
        return self.special + sum(2 if word in self.split else 1 for word in text.split())


@pytest.mark.parametrize("special", [0, 1, 2])
async def test_texts_have_exactly_the_asked_number_of_tokens_whatever_the_tokenizer_adds(special: int) -> None:
    counter = Splitting({"about", "garden", "young"}, special)
    vocabulary = await Vocabulary.of(counter)
    assert counter.calls < 60  # halving finds three words among hundreds
    prompts = random_texts(vocabulary, Shape(40, 25, 7), 20, random.Random(3), chat=False)
    assert [await counter.count(prompt.content) for prompt in prompts if isinstance(prompt.content, str)] == [65] * 20
    assert {prompt.output_tokens for prompt in prompts} == {7}


async def test_the_prefix_is_shared_and_the_rest_is_not() -> None:
    vocabulary = await Vocabulary.of(Splitting(set(), special=1))
    prompts = random_texts(vocabulary, Shape(40, 25, 7), 20, random.Random(3), chat=False)
    words = [str(prompt.content).split() for prompt in prompts]
    assert len({tuple(w[:39]) for w in words}) == 1  # the 40th is the one that the tokenizer adds
    assert len({tuple(w[39:]) for w in words}) == 20


async def test_a_tokenizer_without_whole_words_is_told() -> None:
    with pytest.raises(VocabularyError, match="--dataset text"):
        await Vocabulary.of(Splitting(set(WORDS), special=0))


def test_the_same_seed_makes_the_same_prompts_and_another_one_others() -> None:
    one, same, other = (random_token_ids(Shape(4, 8, 2), 5, random.Random(seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert {len(prompt.content) for prompt in one} == {12}
    assert {tuple(prompt.content[:4]) for prompt in one} == {tuple(one[0].content[:4])}


def test_a_file_has_a_prompt_a_line_and_begins_again_when_it_is_short(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("first\n\nsecond\n")
    assert [prompt.content for prompt in prompts_of_file(file, 9, None)] == ["first", "second"]
    assert [prompt.content for prompt in prompts_of_file(file, 9, 3)] == ["first", "second", "first"]
    assert prompts_of_file(file, 9, 0) == []


def test_lines_of_json_may_have_their_own_output_length(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "output_tokens": 3}\n{"prompt": "b"}\n')
    assert [(p.content, p.output_tokens) for p in prompts_of_file(file, 9, None)] == [("a", 3), ("b", 9)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", " \n", "no prompt"),
        ("a.jsonl", "{", "a.jsonl:1 is not JSON"),
        ("a.jsonl", '{"prompt": "x"}\n{"text": "x"}', 'a.jsonl:2 is not an object with a text "prompt"'),
        ("a.jsonl", '{"prompt": "x", "output_tokens": 0}', "at least 1"),
    ],
)
def test_a_file_that_has_no_prompts_names_the_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(WorkloadError, match=words):
        prompts_of_file(tmp_path / name, 9, None)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="absent"):
        prompts_of_file(tmp_path / "absent", 9, None)


def test_an_infinite_rate_sends_all_at_once() -> None:
    assert departures(3, math.inf, 1.0, random.Random(0)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0])
def test_gaps_have_the_mean_of_the_rate_and_the_spread_of_the_burstiness(burstiness: float) -> None:
    times = departures(20_001, 5.0, burstiness, random.Random(11))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[0] == 0.0
    assert statistics.fmean(gaps) == pytest.approx(0.2, rel=0.05)
    # A gamma distribution's coefficient of variation is one over the root of its shape.
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(burstiness**-0.5, rel=0.05)
