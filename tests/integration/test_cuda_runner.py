"""The runner of the GPU against that of the CPU: the same tokens, whatever is asked, with two steps under way.

Without a GPU its kernels are interpreted, and recorded steps are run anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import pytest
import torch

from tests.unit.kernels.triton_device import DEVICE  # isort: skip  # before the kernels

from appliance.engine.core import EngineCore, Executor
from appliance.engine.kv_cache.manager import KVCacheManager
from appliance.engine.scheduler import Scheduler
from appliance.engine.scheduler_config import SchedulerConfig
from appliance.loading.loader import load_model
from appliance.loading.model_config import load_config
from appliance.models.causal_lm import CausalLM
from appliance.models.facts import ModelFacts, model_facts
from appliance.protocol.sampling_params import SamplingParams
from appliance.runner.cuda.decode_step import AttentionShape
from appliance.runner.cuda.graphs import Recording, StepGraphs
from appliance.runner.cuda.model_runner import CudaRunner
from appliance.runner.cuda.options import RunnerOptions
from appliance.runner.model_runner import ModelRunner
from tests.support.engine_runs import Result, run
from tests.support.tiny_models import VOCAB_SIZE, tiny_model

MAX_NUM_SEQS, MAX_TOKENS, MAX_LEN, BLOCK_SIZE, NUM_BLOCKS = 4, 32, 64, 16, 12
WIDE = {"hidden_size": 96, "head_dim": 16}  # what matrix instructions take at least
GREEDY = {"temperature": 0.0, "ignore_eos": True}


class Unrecorded(StepGraphs):
    """Runs again what would have been recorded: the same memory, the same padding."""

    def record(self, steps: Sequence[Recording], progress: Callable[[float], None]) -> None:
        for step in steps:
            step.prepare()
            self._graphs[step.key] = step.run  # type: ignore[assignment]

    def replay(self, key: Hashable) -> None:
        self._graphs[key]()  # type: ignore[operator]


class Engines:
    """The same random model behind either runner."""

    def __init__(self, folder: Path, family: str) -> None:
        tiny_model(family, **WIDE).save_pretrained(folder)
        self._folder = folder
        self._config = load_config(folder, {})
        self._facts: ModelFacts = model_facts(self._config)

    def run(self, prompts: list[list[int]], params: list[SamplingParams], device: torch.device | None) -> list[Result]:
        """On the CPU, or on a `device` as a GPU would."""
        executor = self._cpu() if device is None else self.cuda_runner(device)
        config = SchedulerConfig(max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=MAX_TOKENS, max_model_len=MAX_LEN)
        return run(EngineCore(Scheduler(config, KVCacheManager(NUM_BLOCKS, BLOCK_SIZE)), executor), prompts, params)

    def _cpu(self) -> Executor:
        device = torch.device("cpu")
        model, caches = self.load(device), self._caches(device)
        for cache in caches:
            cache.zero_()  # PyTorch's products read what they mask
        return ModelRunner(model, caches, max_num_seqs=MAX_NUM_SEQS, max_model_len=MAX_LEN, block_size=BLOCK_SIZE)

    def cuda_runner(self, device: torch.device, *, async_scheduling: bool = True) -> CudaRunner:
        facts = self._facts
        options = RunnerOptions(
            max_num_seqs=MAX_NUM_SEQS,
            max_model_len=MAX_LEN,
            max_num_batched_tokens=MAX_TOKENS,
            block_size=BLOCK_SIZE,
            vocab_size=VOCAB_SIZE,
            shape=AttentionShape(facts.num_heads, facts.num_kv_heads, facts.head_dim, torch.float32),
            graph_sizes=(1, 2, 4),
            sharing_sizes=(4,),
            mixed_decodes=(0, 2, 4),
            mixed_tokens=(8, 24),
            mixed_chunks=2,
            async_scheduling=async_scheduling,
        )
        model = self.load(device)
        runner = CudaRunner(model, self._caches(device), options)
        if device.type == "cuda":
            runner.compile_kernels(model)
        else:
            runner._graphs = Unrecorded()  # type: ignore[assignment]
        runner.capture_graphs()
        return runner

    def load(self, device: torch.device) -> CausalLM:
        return load_model(
            self._folder,
            self._config,
            load_format="auto",
            dtype=torch.float32,
            device=device,
            max_model_len=MAX_LEN,
        )

    def _caches(self, device: torch.device) -> list[torch.Tensor]:
        facts = self._facts
        shape = (NUM_BLOCKS, 2, facts.num_kv_heads, BLOCK_SIZE, facts.head_dim)
        return [torch.full(shape, torch.nan, device=device) for _ in range(facts.num_layers)]


def prompts_of(*lengths: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_prompts_in_chunks_beside_decodes_give_the_tokens_of_the_cpu(tmp_path: Path, family: str) -> None:
    engines = Engines(tmp_path, family)
    prompts = prompts_of(1, 40, 5, 17, 3)
    params = [SamplingParams(max_tokens=3, seed=0, **GREEDY)] * len(prompts)
    want = engines.run(prompts, params, None)
    got = engines.run(prompts, params, DEVICE)
    assert [result.token_ids for result in got] == [result.token_ids for result in want]
    assert all(result.finish_reason == "length" for result in got)


def test_without_scheduling_ahead_the_tokens_are_the_same(tmp_path: Path) -> None:
    engines = Engines(tmp_path, "llama")
    prompts = prompts_of(1, 9)
    params = [SamplingParams(max_tokens=3, seed=0, **GREEDY)] * len(prompts)
    want = engines.run(prompts, params, None)
    runner = engines.cuda_runner(DEVICE, async_scheduling=False)
    assert runner.depth == 1
    config = SchedulerConfig(max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=MAX_TOKENS, max_model_len=MAX_LEN)
    got = run(EngineCore(Scheduler(config, KVCacheManager(NUM_BLOCKS, BLOCK_SIZE)), runner), prompts, params)
    assert [result.token_ids for result in got] == [result.token_ids for result in want]


def test_every_way_of_choosing_a_token_gives_the_tokens_of_the_cpu(tmp_path: Path) -> None:
    engines = Engines(tmp_path, "qwen3")
    params = [
        SamplingParams(max_tokens=3, seed=1, temperature=1.0, logprobs=2),
        SamplingParams(max_tokens=3, seed=2, temperature=0.7, top_p=0.8, top_k=20),
        SamplingParams(max_tokens=4, seed=3, repetition_penalty=1.8, presence_penalty=1.0, **GREEDY),
        SamplingParams(max_tokens=3, seed=4, prompt_logprobs=1, **GREEDY),
    ]
    prompts = prompts_of(4, 9, 6, 20)
    want = engines.run(prompts, params, None)
    got = engines.run(prompts, params, DEVICE)
    assert [result.token_ids for result in got] == [result.token_ids for result in want]
    assert [[entry.token_ids for entry in result.logprobs] for result in got] == [
        [entry.token_ids for entry in result.logprobs] for result in want
    ]
    assert [entry and entry.token_ids for entry in got[3].prompt_logprobs or []] == [
        entry and entry.token_ids for entry in want[3].prompt_logprobs or []
    ]


def test_a_request_that_is_preempted_and_resumed_gives_the_tokens_of_the_cpu(tmp_path: Path) -> None:
    engines = Engines(tmp_path, "llama")
    prompts = prompts_of(30, 31, 32)
    params = [SamplingParams(max_tokens=32 - i, seed=0, **GREEDY) for i in range(3)]
    if DEVICE.type == "cpu":  # interpreted steps are slow: few of them
        prompts, params = prompts_of(30, 31), [SamplingParams(max_tokens=4, seed=0, **GREEDY)] * 2
    want = engines.run(prompts, params, None)
    got = engines.run(prompts, params, DEVICE)
    assert [result.token_ids for result in got] == [result.token_ids for result in want]


def test_kernels_can_be_launched_ahead_of_the_first_step(tmp_path: Path) -> None:
    engines = Engines(tmp_path, "gemma3")
    runner = engines.cuda_runner(DEVICE)
    runner.compile_kernels(engines.load(DEVICE))
    assert all(not cache.isnan().logical_not().any() for cache in runner._kv_caches), "padding was written to the cache"


def test_a_model_that_makes_no_numbers_ends_the_request_that_it_is_for_and_no_other(tmp_path: Path) -> None:
    engines = Engines(tmp_path, "llama")
    runner = engines.cuda_runner(DEVICE)
    poisoned = 7
    runner._model.model.embed_tokens.weight.data[poisoned] = torch.nan  # type: ignore[attr-defined]
    config = SchedulerConfig(max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=MAX_TOKENS, max_model_len=MAX_LEN)
    core = EngineCore(Scheduler(config, KVCacheManager(NUM_BLOCKS, BLOCK_SIZE)), runner)
    prompts = [[token for token in prompt if token != poisoned] for prompt in prompts_of(5, 6)]
    prompts[1][2] = poisoned
    fine, broken = run(
        core, prompts, [SamplingParams(max_tokens=3, seed=0, logit_bias={poisoned: -100.0}, **GREEDY)] * 2
    )
    assert (fine.finish_reason, len(fine.token_ids)) == ("length", 3)
    assert broken.finish_reason == "error"
    assert "NaN" in (broken.error or "")
    assert core.stats().corrupted_requests == 1
