from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.frames import FrameError, FrameSplitter
from appliance.protocol.wire import AbortRequests, Ping, decode_to_engine, encode


@given(st.lists(st.lists(st.text(max_size=5), max_size=4), max_size=6), st.lists(st.integers(1, 40), min_size=1))
def test_frames_come_back_however_the_stream_is_cut(ids: list[list[str]], cuts: list[int]) -> None:
    sent = [AbortRequests(request_ids) for request_ids in ids]
    stream = b"".join(encode(message) for message in sent)
    splitter, received, at, turn = FrameSplitter(), [], 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        received += [decode_to_engine(body) for body in splitter.feed(stream[at : at + size])]
        at, turn = at + size, turn + 1
    assert received == sent


def test_a_frame_with_no_fields_is_a_frame() -> None:
    assert [decode_to_engine(body) for body in FrameSplitter().feed(encode(Ping()))] == [Ping()]


def test_an_absurd_length_is_an_error_before_its_bytes_arrive() -> None:
    with pytest.raises(FrameError, match="4294967295 bytes"):
        list(FrameSplitter().feed(b"\xff\xff\xff\xff"))
