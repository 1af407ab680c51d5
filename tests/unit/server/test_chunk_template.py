from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from appliance.protocol.openai.chat import ChatChunkChoice, ChatCompletionChunk, ChatDelta
from appliance.server.chunk_template import ChunkTemplate
from appliance.server.sse import event


@given(st.text(), st.text())
def test_an_event_of_a_template_is_what_encoding_the_whole_chunk_gives(text: str, model: str) -> None:
    def chunk(content: str) -> ChatCompletionChunk:
        choice = ChatChunkChoice(index=3, delta=ChatDelta(content=content))
        return ChatCompletionChunk(id="x", created=1, model=model, system_fingerprint="f", choices=[choice], usage=None)

    assert ChunkTemplate(chunk).event(text) == event(msgspec.json.encode(chunk(text)))
