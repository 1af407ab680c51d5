from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.protocol.sampling_params import SamplingParams
from appliance.text.stop_strings import StopStrings
from appliance.text.stream import TextStream
from appliance.text.tokenizer import Tokenizer

small_texts = st.text(alphabet="ab\n", max_size=30)
small_stops = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=6), max_size=5)


def brute_force(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Grow the text by a character at a time until it ends in a stop string; the longest one counts."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return (text[:end] if include else text[: end - len(stop)]), stop
    return text, None


@given(small_texts, small_stops, st.lists(st.integers(0, 30), max_size=8), st.booleans())
def test_pieces_stop_where_the_whole_text_stops(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    matcher = StopStrings(stops, include_in_output=include)
    shown, found, start = "", None, 0
    for cut in [*sorted(min(cut, len(text)) for cut in cuts), len(text)]:
        piece, found = matcher.push(text[start:cut])
        shown, start = shown + piece, cut
        if found is not None:
            break
    else:
        shown += matcher.finish()
    assert (shown, found) == brute_force(text, stops, include)


@given(small_texts, small_stops)
def test_exactly_what_may_become_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    matcher, shown = StopStrings(stops), ""
    for end in range(1, len(text) + 1):
        piece, found = matcher.push(text[end - 1 : end])
        if found is not None:
            return
        shown += piece
        prefixes = (text[:end][-n:] for n in range(end, 0, -1))
        held = next((p for p in prefixes if any(stop.startswith(p) for stop in stops)), "")
        assert shown == text[: end - len(held)]


@given(small_texts, small_stops, st.integers(0, 30))
def test_ignored_text_completes_no_stop_string_but_may_begin_one(text: str, stops: list[str], boundary: int) -> None:
    matcher = StopStrings(stops)
    shown = matcher.push(text[:boundary], ignore=True).text
    piece, found = matcher.push(text[boundary:])
    shown += piece + (matcher.finish() if found is None else "")
    for end in range(boundary + 1, len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            longest = max(matching, key=len)
            assert (shown, found) == (text[: end - len(longest)], longest)
            return
    assert (shown, found) == (text, None)


def test_a_stop_string_that_straddles_tokens_is_cut_out(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("The dog, and the dog did")
    stream = TextStream(byte_level, [], SamplingParams(stop=("g, an", "never")))
    shown = ""
    for i in ids:
        delta = stream.push([i])
        shown += delta.text
        if delta.stopped:
            assert delta.stop_reason == "g, an"
            break
    assert delta.stopped
    assert shown == "The do"


def test_a_stop_string_is_shown_on_request(byte_level: Tokenizer) -> None:
    stream = TextStream(byte_level, [], SamplingParams(stop=("g, an",), include_stop_str_in_output=True))
    assert stream.push(byte_level.encode("The dog, and")) == ("The dog, an", True, "g, an")


def test_held_back_text_comes_out_at_the_end(byte_level: Tokenizer) -> None:
    stream = TextStream(byte_level, [], SamplingParams(stop=("dog and",)))
    assert stream.push(byte_level.encode("The dog")).text == "The "
    assert stream.push([], finished=True) == ("dog", False, None)


@given(st.integers(0, 12), st.integers(1, 12), st.integers(1, 5))
def test_a_stop_string_counts_from_the_token_that_reaches_min_tokens(
    byte_level: Tokenizer, min_tokens: int, stop_at: int, step: int
) -> None:
    stop_id, other = byte_level.encode("x")[0], byte_level.encode("y")[0]
    ids = [other] * 12
    ids[stop_at - 1] = stop_id
    stream = TextStream(byte_level, [], SamplingParams(stop=("x",), min_tokens=min_tokens, max_tokens=None))
    shown, stopped = "", False
    for start in range(0, 12, step):
        delta = stream.push(ids[start : start + step])
        shown, stopped = shown + delta.text, delta.stopped
        if stopped:
            break
    assert stopped == (stop_at >= min_tokens)
    assert shown == ("y" * (stop_at - 1) if stopped else byte_level.decode(ids))


def test_the_token_that_ends_a_sequence_has_no_text(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("The dog")
    hidden = TextStream(byte_level, [], SamplingParams(stop_token_ids=(ids[-1],)))
    assert hidden.push(ids, finished=True, drop_last=True).text == byte_level.decode(ids[:-1])
    shown = TextStream(byte_level, [], SamplingParams(stop_token_ids=(ids[-1],), include_stop_str_in_output=True))
    assert shown.push(ids, finished=True, drop_last=True).text == "The dog"


def test_a_long_stop_string_of_one_letter_costs_linear_time() -> None:
    matcher = StopStrings(["a" * 20_000 + "b"] * 16)
    steps = [matcher.push("a" * 100).text for _ in range(1000)]
    assert sum(map(len, steps)) == 80_000
