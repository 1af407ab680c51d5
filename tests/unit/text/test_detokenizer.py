from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from appliance.protocol.sampling_params import SamplingParams
from appliance.text.detokenizer import ByteDetokenizer, WindowDetokenizer, make_detokenizer
from appliance.text.stream import TextStream
from appliance.text.tokenizer import Tokenizer

emoji = st.sampled_from(["🌍", "👩‍👩‍👧", "🇩🇪", "é", "e\u0301", "漢字", "  ", "\n\n", " a", "über", "�"])
texts = st.lists(st.one_of(st.text(max_size=12), emoji, st.sampled_from([" the", " dog", "12345"])), max_size=12).map(
    "".join
)
cuts = st.lists(st.integers(0, 200), max_size=6)


def stream(tokenizer: Tokenizer, prompt: list[int], ids: list[int], cuts: list[int], **params: bool) -> list[str]:
    """The deltas when `ids` come in pieces, cut at `cuts`."""
    text = TextStream(tokenizer, prompt, SamplingParams(**params))
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    deltas = [text.push(ids[a:b]).text for a, b in pairwise(bounds)]
    return [*deltas, text.push([], finished=True).text]


@given(texts, cuts)
def test_byte_level_deltas_add_up_to_the_text(byte_level: Tokenizer, text: str, cuts: list[int]) -> None:
    assert "".join(stream(byte_level, [], byte_level.encode(text), cuts)) == text


@given(texts, cuts)
def test_sentencepiece_deltas_add_up_to_the_text(sentencepiece: Tokenizer, text: str, cuts: list[int]) -> None:
    ids = sentencepiece.encode(text)
    assert "".join(stream(sentencepiece, [], ids, cuts)) == sentencepiece.decode(ids)


@given(st.lists(st.integers(0, 402), max_size=40), cuts, st.booleans())
def test_any_byte_level_ids_stream_as_they_decode_at_once(
    byte_level: Tokenizer, ids: list[int], cuts: list[int], skip: bool
) -> None:
    expected = byte_level.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(byte_level, [], ids, cuts, skip_special_tokens=skip)) == expected


@given(st.lists(st.sampled_from([0, 1, 2, *range(259, 420)]), max_size=40), cuts, st.booleans())
def test_sentencepiece_ids_without_byte_tokens_stream_as_they_decode_at_once(
    sentencepiece: Tokenizer, ids: list[int], cuts: list[int], skip: bool
) -> None:
    expected = sentencepiece.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(sentencepiece, [], ids, cuts, skip_special_tokens=skip)) == expected


@given(st.binary(max_size=12))
def test_broken_sentencepiece_bytes_keep_the_characters_that_are_valid(sentencepiece: Tokenizer, data: bytes) -> None:
    ids = [3 + byte for byte in data] + sentencepiece.encode("x")
    expected = (data.decode(errors="replace") + " x").removeprefix(" ")
    assert "".join(stream(sentencepiece, [], ids, list(range(60)))) == expected


@given(texts, texts)
def test_text_after_a_prompt_keeps_its_first_space(sentencepiece: Tokenizer, prompt: str, text: str) -> None:
    prompt_ids, ids = sentencepiece.encode("x" + prompt), sentencepiece.encode(text)
    expected = sentencepiece.decode(prompt_ids + ids)[len(sentencepiece.decode(prompt_ids)) :]
    assert "".join(stream(sentencepiece, prompt_ids, ids, [])) == expected


@given(texts)
def test_no_delta_ends_within_a_character(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text)
    deltas = stream(byte_level, [], ids, list(range(len(ids))))
    for delta in deltas[:-1]:
        assert delta.count("�") <= text.count("�")
    assert "".join(deltas) == text


def test_a_character_that_the_prompt_begins_is_finished_by_the_output(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("ab🧿")
    assert len(ids) > 3  # the emoji has no token of its own
    assert "".join(stream(byte_level, ids[:3], ids[3:], [])) == "🧿"


def test_a_character_that_never_ends_comes_out_as_a_replacement_character_at_the_end(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("ab🧿")
    assert len(ids) == 5
    text = TextStream(byte_level, [], SamplingParams())
    assert [text.push([i]).text for i in ids[:4]] == ["a", "b", "", ""]
    assert text.push([], finished=True).text == "�"


@given(texts, cuts)
def test_tokenizers_that_need_neighbours_stream_as_they_decode_at_once(
    word_piece: Tokenizer, text: str, cuts: list[int]
) -> None:
    ids = word_piece.encode(text)
    assert "".join(stream(word_piece, [], ids, cuts)) == word_piece.decode(ids)


@given(texts, cuts)
def test_the_window_gives_what_bytes_give(byte_level: Tokenizer, text: str, cuts: list[int]) -> None:
    window = WindowDetokenizer(byte_level, [], skip_special_tokens=True, spaces_between_special_tokens=True)
    ids = byte_level.encode(text)
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    assert "".join([window.push(ids[a:b]) for a, b in pairwise(bounds)]) + window.finish() == text


def test_each_kind_of_tokenizer_gets_its_detokenizer(
    byte_level: Tokenizer, sentencepiece: Tokenizer, word_piece: Tokenizer
) -> None:
    assert isinstance(make_detokenizer(byte_level, []), ByteDetokenizer)
    assert isinstance(make_detokenizer(sentencepiece, []), ByteDetokenizer)
    assert isinstance(make_detokenizer(word_piece, []), WindowDetokenizer)
