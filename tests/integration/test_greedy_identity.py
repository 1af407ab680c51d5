"""The engine's greedy tokens are transformers' tokens, however the work is cut, shared, or thrown away and redone."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from appliance.protocol.sampling_params import SamplingParams
from tests.support.engine_runs import assert_greedy, build, reference_logprobs, run
from tests.support.tiny_models import FAMILIES, WINDOW, tiny_model

NUM_PROMPTS = 64
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, seed=0)
LICENSE = Path(__file__).parents[2] / "LICENSE"


@pytest.fixture(scope="module")
def reference(demo_model_fp32: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(demo_model_fp32, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(demo_model_fp32: Path) -> list[list[int]]:
    """Passages of real text, from one token to some hundreds, and questions through the chat template."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model_fp32)
    text = re.sub(r"\s+", " ", LICENSE.read_text())
    tokens = tokenizer.encode(text)
    rng = random.Random(0)
    lengths = [1, 2, 15, 16, 17, 31, 32, 33, 64, 300] + [int(2 ** rng.uniform(1, 7.5)) for _ in range(46)]
    passages = []
    for length in lengths:
        start = rng.randrange(len(tokens) - length)
        passages.append(tokens[start : start + length])
    for topic in ["rivers", "prime numbers", "Rome", "bread", "the moon", "TCP", "whales", "chess"]:
        message = [{"role": "user", "content": f"Tell me one fact about {topic}."}]
        chat = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True)
        passages.append(list(chat["input_ids"] if not isinstance(chat, list) else chat))
    assert len(passages) == NUM_PROMPTS
    return passages


@pytest.fixture(scope="module")
def expected(demo_model_fp32: Path, reference: PreTrainedModel, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers generates greedily, each prompt by itself."""
    core = build(demo_model_fp32, kv_tokens=16384)
    outputs = []
    for prompt in prompts:
        (result,) = run(core, [prompt], GREEDY)
        assert_greedy(reference, prompt, result.token_ids)
        outputs.append(result.token_ids)
    return outputs


def tokens_of(results) -> list[list[int]]:
    assert all(result.finish_reason == "length" for result in results)
    return [result.token_ids for result in results]


def test_generate_itself_agrees(reference, prompts, expected):
    for i in (0, 9, 60):
        ids = torch.tensor([prompts[i]])
        out = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            min_new_tokens=12,
            pad_token_id=0,
            eos_token_id=None,
        )
        assert out[0, len(prompts[i]) :].tolist() == expected[i]


def test_all_prompts_in_one_mixed_batch_with_prefix_hits_afterwards(demo_model_fp32, prompts, expected):
    core = build(demo_model_fp32, kv_tokens=32768)
    assert tokens_of(run(core, prompts, GREEDY)) == expected
    again = run(core, prompts, GREEDY)
    assert tokens_of(again) == expected
    for prompt, result in zip(prompts, again, strict=True):
        assert result.num_cached_tokens == (len(prompt) - 1) // 16 * 16


@pytest.mark.parametrize("budget", [67, 129])
def test_chunks_that_cut_prompts_anywhere_change_nothing(demo_model_fp32, prompts, expected, budget):
    core = build(demo_model_fp32, kv_tokens=32768, max_num_batched_tokens=budget, max_num_seqs=64)
    assert tokens_of(run(core, prompts, GREEDY)) == expected


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_preemption_changes_nothing(demo_model_fp32, prompts, expected, enable_prefix_caching):
    # room for a few requests at a time only: they push each other out as they grow
    core = build(
        demo_model_fp32, kv_tokens=320, max_model_len=320, block_size=4, enable_prefix_caching=enable_prefix_caching
    )
    chosen = [i for i, prompt in enumerate(prompts) if len(prompt) < 40]
    assert tokens_of(run(core, [prompts[i] for i in chosen], GREEDY)) == [expected[i] for i in chosen]
    stats = core.stats()
    assert stats.num_preemptions > 0
    assert stats.kv_cache_usage == 0.0


def test_requests_that_share_a_cold_prefix_compute_it_once(demo_model_fp32, reference, prompts):
    core = build(demo_model_fp32, kv_tokens=8192)
    shared = prompts[9]
    batch = [shared + prompts[i] for i in range(20, 28)]
    results = run(core, batch, GREEDY)
    assert sum(result.num_cached_tokens > 0 for result in results) == 7
    for prompt, result in zip(batch, results, strict=True):
        assert_greedy(reference, prompt, result.token_ids)


def test_logprobs_of_output_and_prompt_agree(demo_model_fp32, reference, prompts):
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, seed=0, logprobs=3, prompt_logprobs=2)
    core = build(demo_model_fp32, kv_tokens=32768, max_num_batched_tokens=200, max_num_seqs=64)
    for prompt, result in zip(prompts, run(core, prompts, params), strict=True):
        want = reference_logprobs(reference, prompt, result.token_ids)
        found = [*result.prompt_logprobs, *result.logprobs]
        assert found[0] is None
        assert len(found) == len(prompt) + 8
        for position, entry in enumerate(found[1:]):
            torch.testing.assert_close(torch.tensor(entry.logprobs), want[position, entry.token_ids], atol=1e-4, rtol=0)
            best = entry.token_ids[1:]
            torch.testing.assert_close(want[position, best], want[position].topk(len(best)).values, atol=1e-4, rtol=0)


def test_a_seed_gives_the_same_tokens_alone_and_in_a_crowd(demo_model_fp32, prompts):
    core = build(demo_model_fp32, kv_tokens=8192)
    chosen = [prompts[i] for i in (3, 12, 30, 45, 58, 63)]
    variants = [{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.05}, {"temperature": 0.7}, {"presence_penalty": 1.0}]
    params = [SamplingParams(max_tokens=12, ignore_eos=True, seed=i, **extra) for i, extra in enumerate(variants)]
    alone = [run(core, [prompt], sampling)[0].token_ids for prompt, sampling in zip(chosen, params, strict=True)]
    together = run(core, chosen + prompts[:20], params + [GREEDY] * 20)
    assert [result.token_ids for result in together[: len(chosen)]] == alone


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_alone_batched_chunked_shared_and_preempted(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    rng = random.Random(1)
    prompts = [[rng.randrange(101) for _ in range(rng.choice([1, 5, 12, 13, 40, 90]))] for _ in range(16)]
    prompts += [prompts[-1] + [7, 8, 9], prompts[0] * 3]
    settings = {"kv_tokens": 4096, "block_size": 8, "max_model_len": 112}
    alone = build(tmp_path, **settings)
    expected = [run(alone, [prompt], GREEDY)[0].token_ids for prompt in prompts]
    for prompt, output in zip(prompts, expected, strict=True):
        assert_greedy(model, prompt, output)

    assert tokens_of(run(build(tmp_path, **settings), prompts, GREEDY)) == expected
    chunked = build(tmp_path, **settings, max_num_batched_tokens=23, max_num_seqs=20)
    assert tokens_of(run(chunked, prompts, GREEDY)) == expected
    assert tokens_of(run(chunked, prompts, GREEDY)) == expected, "with prefix hits"
    tight = build(tmp_path, **(settings | {"kv_tokens": 112}))
    assert tokens_of(run(tight, prompts, GREEDY)) == expected
    assert tight.stats().num_preemptions > 0


def test_disable_sliding_window_serves_no_more_than_the_window(tmp_path):
    tiny_model("mistral").save_pretrained(tmp_path)
    core = build(tmp_path, kv_tokens=128, block_size=8, disable_sliding_window=True)
    short, too_long = run(core, [[3] * 5, [3] * 40], GREEDY)
    assert short.finish_reason == "length" and len(short.token_ids) == WINDOW - 5
    assert too_long.error is not None and f"max_model_len ({WINDOW})" in too_long.error
