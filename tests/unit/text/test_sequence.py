from __future__ import annotations

from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import TokenDelta
from appliance.text.sequence import SequenceStream
from appliance.text.tokenizer import Tokenizer


def test_a_stop_string_ends_the_sequence_and_asks_for_an_abort(byte_level: Tokenizer) -> None:
    sequence = SequenceStream(byte_level, [], SamplingParams(stop=("dog",)))
    delta = sequence.push(TokenDelta("r", byte_level.encode("The dog, and")))
    assert delta is not None
    assert (delta.text, delta.finish_reason, delta.stop_reason, delta.abort_engine) == ("The ", "stop", "dog", True)
    assert sequence.push(TokenDelta("r", [5, 6])) is None
    assert sequence.push(TokenDelta("r", [], finish_reason="abort")) is None


def test_the_end_of_sequence_token_counts_but_has_no_text(byte_level: Tokenizer) -> None:
    sequence = SequenceStream(byte_level, [], SamplingParams(skip_special_tokens=False))
    ids = [*byte_level.encode("The dog"), 1]
    delta = sequence.push(TokenDelta("r", ids, finish_reason="stop"))
    assert delta is not None
    assert (delta.text, delta.token_ids, delta.finish_reason, delta.stop_reason) == ("The dog", ids, "stop", None)
    assert not delta.abort_engine
    assert sequence.num_tokens == len(ids)


def test_a_stop_string_in_the_last_tokens_wins_over_the_length(byte_level: Tokenizer) -> None:
    sequence = SequenceStream(byte_level, [], SamplingParams(stop=("dog",)))
    delta = sequence.push(TokenDelta("r", byte_level.encode("The dog"), finish_reason="length"))
    assert delta is not None
    assert (delta.text, delta.finish_reason, delta.stop_reason, delta.abort_engine) == ("The ", "stop", "dog", False)


def test_the_last_delta_brings_what_was_held_back(byte_level: Tokenizer) -> None:
    sequence = SequenceStream(byte_level, [], SamplingParams(stop=("dogs",)))
    first = sequence.push(TokenDelta("r", byte_level.encode("The dog")))
    last = sequence.push(TokenDelta("r", [], finish_reason="length"))
    assert first is not None
    assert last is not None
    assert (first.text, last.text, last.finish_reason) == ("The ", "dog", "length")


def test_without_a_tokenizer_there_are_ids_and_no_text() -> None:
    sequence = SequenceStream(None, [], SamplingParams())
    delta = sequence.push(TokenDelta("r", [4, 5], finish_reason="length"))
    assert delta is not None
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("", [4, 5], "length")
