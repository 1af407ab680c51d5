"""The small parts between a request body and the engine."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.protocol.fan_out import fan_out
from appliance.protocol.openai.chat import ChatCompletionRequest
from appliance.protocol.openai.common import GenerationRequest
from appliance.protocol.openai.completions import CompletionRequest
from appliance.protocol.openai.decode import RequestError, decode_request
from appliance.protocol.openai.fields import HARMLESS, UNSUPPORTED
from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.seeds import seed_source
from appliance.server.auth import ApiKeys
from appliance.server.errors import ApiError
from appliance.server.request_record import request_id_of
from appliance.server.sampling import sampling_params

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = [field.name for field in msgspec.structs.fields(ChatCompletionRequest)]

# Every parameter that OpenAI documents for the two routes.
OPENAI_COMPLETIONS = (
    *("model", "prompt", "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n"),
    *("presence_penalty", "seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_p", "user"),
)
OPENAI_CHAT = (
    *("messages", "model", "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs"),
    *("max_completion_tokens", "max_tokens", "metadata", "modalities", "n", "parallel_tool_calls", "prediction"),
    *("presence_penalty", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "response_format"),
    *("safety_identifier", "seed", "service_tier", "stop", "store", "stream", "stream_options", "temperature"),
    *("tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options"),
)


@pytest.mark.parametrize(
    ("struct", "names"), [(CompletionRequest, OPENAI_COMPLETIONS), (ChatCompletionRequest, OPENAI_CHAT)]
)
def test_every_documented_field_of_openai_is_known(struct: type[msgspec.Struct], names: tuple[str, ...]) -> None:
    own = {field.name for field in msgspec.structs.fields(struct)}
    assert set(names) <= own | HARMLESS | UNSUPPORTED.keys()


def test_the_lists_of_fields_do_not_overlap() -> None:
    own = {field.name for field in msgspec.structs.fields(ChatCompletionRequest)}
    own |= {field.name for field in msgspec.structs.fields(CompletionRequest)}
    assert not own & HARMLESS and not own & UNSUPPORTED.keys() and not HARMLESS & UNSUPPORTED.keys()


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(), JSON, max_size=5))
def test_any_json_object_is_a_request_or_an_error_that_names_its_field(body: dict[str, Any]) -> None:
    try:
        decode_request(msgspec.json.encode(body), ChatCompletionRequest)
    except RequestError as error:
        assert str(error)
        assert error.param is not None


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_an_error(body: bytes) -> None:
    with pytest.raises(RequestError):
        decode_request(body, ChatCompletionRequest)


def test_sequences_of_one_request_have_consecutive_seeds_that_fit_64_bits() -> None:
    draw = iter([5]).__next__  # once, and only where no seed is given
    assert [p.seed for p in fan_out(SamplingParams(n=3, seed=2**64 - 1), draw)] == [2**64 - 1, 0, 1]
    assert [p.seed for p in fan_out(SamplingParams(n=2, seed=-1), draw)] == [-1, 0]
    assert [(p.n, p.seed) for p in fan_out(SamplingParams(n=2), draw)] == [(1, 5), (1, 6)]


def test_requests_without_a_seed_get_different_ones_that_the_setting_repeats() -> None:
    seeds = []
    for draw in (seed_source(None), seed_source(None), seed_source(5), seed_source(5)):
        seeds.append([fan_out(SamplingParams(), draw)[0].seed for _ in range(20)])
    unset, unset_again, five, five_again = seeds
    assert five == five_again
    assert len({*unset, *unset_again, *five}) == 60


def test_a_request_that_says_nothing_has_the_default_parameters() -> None:
    made = sampling_params(GenerationRequest(), max_tokens=16, logprobs=None, prompt_logprobs=None)
    assert made == SamplingParams()


def test_keys_are_told_apart_by_label_and_the_wrong_ones_refused() -> None:
    keys = ApiKeys(("one", "two"))
    assert keys.check("Bearer one") == ("key-0", None)
    assert keys.check("bearer two ") == ("key-1", None)
    for wrong in (None, "", "one", "Bearer three", "Basic one", "Bearer"):
        with pytest.raises(ApiError) as caught:
            keys.check(wrong)
        assert caught.value.status == 401
        assert caught.value.headers["WWW-Authenticate"] == "Bearer"


@given(st.text())
def test_a_request_id_is_short_printable_and_never_empty(sent: str) -> None:
    kept = request_id_of(sent)
    assert 0 < len(kept) <= 128
    assert kept.isascii() and kept.isprintable() and " " not in kept
