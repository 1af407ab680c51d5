"""The offline `LLM` on the real model."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import LLM, SamplingParams
from appliance.config import ConfigError
from appliance.engine.startup_errors import StartupError
from appliance.protocol.sampling_params import ParameterError
from appliance.protocol.wire import TokenDelta
from appliance.text.chat import ChatTemplateError
from appliance.text.tokenizer_files import TokenizerLoadError
from tests.support.tiny_models import tiny_model

GREEDY = SamplingParams(temperature=0, max_tokens=12)
TEXT = "The capital of France is"


def conversation(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


@pytest.fixture(scope="module")
def folder(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with the real tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_model("llama", vocab_size=49152).save_pretrained(folder)
    for file in (demo_model / name for name in ("tokenizer.json", "tokenizer_config.json")):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(str(folder), max_num_seqs=16, kv_cache_memory=4 * 2**20)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "llm" in request.fixturenames:
        stats = request.getfixturevalue("llm")._core.stats()
        assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0.0)


def test_the_real_model_answers_several_conversations_in_order(demo_model_fp32: Path) -> None:
    llm = LLM(str(demo_model_fp32), max_model_len=256, kv_cache_memory=32 * 2**20)
    greedy = SamplingParams(temperature=0, max_tokens=10)
    stopped = SamplingParams(temperature=0, max_tokens=10, stop=("of Fra",))
    without = SamplingParams(temperature=0, max_tokens=10, bad_words=("Paris",))
    france, japan = conversation("What is the capital of France?"), conversation("What is the capital of Japan?")
    outputs = llm.chat([france, japan, france, france], [greedy, greedy, stopped, without])
    first, second, third, fourth = (output.outputs[0] for output in outputs)
    assert (first.text, first.finish_reason, first.stop_reason) == ("The capital of France is Paris.", "stop", None)
    assert llm.get_tokenizer().token_text(first.token_ids[-1]) == "<|im_end|>"
    assert second.text == "The capital of Japan is Tokyo."
    assert (third.text, third.finish_reason, third.stop_reason) == ("The capital ", "stop", "of Fra")
    assert fourth.text.startswith("The capital of France is")
    assert "Paris" not in fourth.text


def test_every_form_of_a_prompt_gives_the_same_output(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(TEXT)
    forms = [TEXT, ids, [TEXT], [ids], {"prompt": TEXT}, {"prompt_token_ids": ids}]
    outputs = [llm.generate(form, GREEDY)[0] for form in forms]
    assert {output.outputs[0].text for output in outputs} == {outputs[0].outputs[0].text}
    assert all(output.prompt_token_ids == ids for output in outputs)
    assert [output.prompt for output in outputs] == [TEXT, None, TEXT, None, TEXT, None]


def test_outputs_come_in_the_order_of_the_prompts_each_with_its_parameters(llm: LLM) -> None:
    lengths = [5, 1, 9, 3]
    params = [SamplingParams(max_tokens=n, ignore_eos=True, temperature=0) for n in lengths]
    outputs = llm.generate(["one", "two", "three", "four"], params)
    assert [output.prompt for output in outputs] == ["one", "two", "three", "four"]
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
    assert all(output.outputs[0].finish_reason == "length" for output in outputs)


def test_n_sequences_have_the_seeds_that_follow_the_given_one(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=8, ignore_eos=True)
    [together] = llm.generate(TEXT, params)
    alone = [
        llm.generate(TEXT, SamplingParams(seed=seed, max_tokens=8, ignore_eos=True))[0].outputs[0] for seed in (7, 8, 9)
    ]
    assert [completion.index for completion in together.outputs] == [0, 1, 2]
    assert [c.token_ids for c in together.outputs] == [c.token_ids for c in alone]
    assert len({tuple(c.token_ids) for c in together.outputs}) > 1


def test_the_setting_seed_makes_a_run_repeat_and_without_it_runs_differ(folder: Path) -> None:
    def run(**settings: Any) -> list[tuple[int, ...]]:
        llm = LLM(str(folder), kv_cache_memory=2**20, **settings)
        params = SamplingParams(n=2, max_tokens=8, ignore_eos=True)
        outputs = [*llm.generate([TEXT, TEXT], params, use_tqdm=False), *llm.generate(TEXT, params, use_tqdm=False)]
        return [tuple(completion.token_ids) for output in outputs for completion in output.outputs]

    first, again = run(seed=5), run(seed=5)
    assert first == again
    assert len(set(first)) == 6
    assert set(run()).isdisjoint(run())


@pytest.mark.parametrize("in_a_file", [False, True])
def test_the_setting_chat_template_replaces_the_models_own(folder: Path, tmp_path: Path, in_a_file: bool) -> None:
    template = "{% for message in messages %}<{{ message.role }}> {{ message.content }}{% endfor %}"
    file = tmp_path / "template.jinja"
    file.write_text(template)
    llm = LLM(str(folder), kv_cache_memory=2**20, chat_template=str(file) if in_a_file else template)
    [output] = llm.chat(conversation("Hello"), GREEDY)
    assert output.prompt_token_ids == llm.get_tokenizer().encode("<user> Hello", add_special_tokens=False)


def test_a_chat_template_that_cannot_be_read_names_the_setting(folder: Path) -> None:
    with pytest.raises(TokenizerLoadError, match=r"missing\.jinja.*--chat-template"):
        LLM(str(folder), chat_template="missing.jinja")


def test_a_stop_string_ends_a_text_within_a_token(llm: LLM) -> None:
    whole = llm.generate(TEXT, GREEDY)[0].outputs[0].text
    stop = whole[7:12]
    params = SamplingParams(temperature=0, max_tokens=12, stop=(stop,))
    completion = llm.generate(TEXT, params)[0].outputs[0]
    assert (completion.text, completion.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert completion.stop_reason == stop
    assert len(completion.token_ids) < 12


def test_logprobs_are_given_by_token(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=1)
    [output] = llm.generate(TEXT, params)
    [completion] = output.outputs
    assert completion.logprobs is not None
    assert len(completion.logprobs) == len(completion.token_ids)
    for token, position in zip(completion.token_ids, completion.logprobs, strict=True):
        assert len(position) == 2
        assert position[token].rank == 1
        assert position[token].decoded_token == llm.get_tokenizer().token_text(token)
    chosen = [p[t].logprob for t, p in zip(completion.token_ids, completion.logprobs, strict=True)]
    assert completion.cumulative_logprob == pytest.approx(sum(chosen))
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    for token, position in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
        assert position is not None
        assert token in position


def test_a_repeated_prompt_finds_its_prefix(llm: LLM) -> None:
    prompt = "A long story about a fox that lived in the woods. " * 20
    llm.reset_prefix_cache()
    first, second = (llm.generate(prompt, GREEDY)[0] for _ in range(2))
    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens > len(second.prompt_token_ids) // 2
    assert first.outputs[0].token_ids == second.outputs[0].token_ids


def test_wrong_arguments_are_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(ParameterError, match="outside the vocabulary"):
        llm.generate([1, 2, 10**6])
    with pytest.raises(ParameterError, match="no tokens"):
        llm.generate([""])
    with pytest.raises(ParameterError, match="prompt 1"):
        llm.generate(["short", list(range(300))])
    with pytest.raises(ParameterError, match="temperature"):
        llm.generate("x", SamplingParams(temperature=-1))
    with pytest.raises(ValueError, match="2 prompts, but 1 sampling_params"):
        llm.generate(["x", "y"], [GREEDY])
    with pytest.raises(ValueError, match="prompt_token_ids"):
        llm.generate({"text": "x"})
    with pytest.raises(ChatTemplateError, match="empty"):
        llm.chat([[]])
    assert llm.generate([]) == []


def test_the_first_interrupt_ends_all_prompts_and_the_llm_stays_usable(llm: LLM) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["x"] * 64, SamplingParams(max_tokens=200, ignore_eos=True))
    timer.join()
    assert llm._core.stats().num_running == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert llm.generate("The", GREEDY)[0].finished


def test_a_sequence_that_fails_alone_says_why(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step = llm._core.step

    def failing() -> list[TokenDelta]:
        deltas = step()
        for delta in deltas:
            if delta.request_id.endswith("-1"):
                llm._core.abort([delta.request_id])
        return [
            TokenDelta(d.request_id, [], finish_reason="error", error="numbers overflowed")
            if d.request_id.endswith("-1")
            else d
            for d in deltas
        ]

    monkeypatch.setattr(llm._core, "step", failing)
    good, bad = llm.generate("The", SamplingParams(n=2, max_tokens=4, ignore_eos=True))[0].outputs
    assert (good.finish_reason, good.error, len(good.token_ids)) == ("length", None, 4)
    assert (bad.finish_reason, bad.error, bad.token_ids) == ("error", "numbers overflowed", [])


def test_an_unknown_setting_is_refused_with_the_nearest_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match="max-num-seqs"):
        LLM(str(folder), max_num_seq=3)
    with pytest.raises(StartupError, match="max-model-len"):
        LLM(str(folder), max_model_len=100_000)


def test_without_a_tokenizer_prompts_are_ids(folder: Path) -> None:
    llm = LLM(str(folder), skip_tokenizer_init=True, kv_cache_memory=2**20)
    [completion] = llm.generate([504, 3575, 282], GREEDY)[0].outputs
    assert completion.token_ids
    assert completion.text == ""
    with pytest.raises(ValueError, match="skip_tokenizer_init"):
        llm.generate("text")
    with pytest.raises(ParameterError, match="stop strings need a tokenizer"):
        llm.generate([504], SamplingParams(stop=("x",)))
