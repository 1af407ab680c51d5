"""Compiles the kernels of a model side by side, before the first step would compile them one after another.

A compilation spends most of its time in other programs (the assembler, and the C compiler for Triton's launchers), so
threads help. Whatever is missing here is compiled by the steps of `warm_up`, only later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch

from appliance.models.causal_lm import CausalLM
from appliance.runner.cuda.decode_step import DecodeStep
from appliance.runner.cuda.device_rows import DeviceRows
from appliance_kernels.device_metadata import DeviceMetadata
from appliance_kernels.ops import rotary_rows
from appliance_kernels.triton_kernels import logprobs, sampling, step_inputs

THREADS = 16


def compile_kernels(
    model: CausalLM, kv_caches: list[torch.Tensor], rows: DeviceRows, decode_step: DecodeStep, *, shares_prefix: bool
) -> None:
    """Launch every kernel once, on inputs that are all padding. `kv_caches` of any size."""
    device = kv_caches[0].device

    on_gpu = device.type == "cuda"

    def in_thread(job: Callable[[], object]) -> None:
        with torch.inference_mode(), torch.cuda.device(device) if on_gpu else nullcontext():
            job()

    jobs = [*_layers(model, kv_caches, decode_step, shares_prefix), *_around(model, rows, decode_step)]
    with ThreadPoolExecutor(THREADS if on_gpu else 1) as pool:  # Triton's interpreter is not made for threads
        for _ in pool.map(in_thread, jobs):  # raises what a job raised
            pass
    if on_gpu:
        torch.cuda.synchronize(device)


def _layers(
    model: CausalLM, kv_caches: list[torch.Tensor], decode_step: DecodeStep, shares_prefix: bool
) -> Iterator[Callable[[], object]]:
    """One layer of each kind, with each way of attending."""
    device, dtype = kv_caches[0].device, model.model.embed_tokens.weight.dtype
    seen = set()
    for layer, kv_cache in zip(model.model.layers, kv_caches, strict=True):
        window = layer.self_attn.sliding_window
        if window in seen:
            continue
        seen.add(window)
        hidden = torch.zeros(1, model.model.embed_tokens.weight.shape[1], dtype=dtype, device=device)
        for metadata in _ways(decode_step, device, shares_prefix):
            rotary = rotary_rows(model.model.rotary_tables[layer.rope], metadata, dtype)
            yield lambda layer=layer, hidden=hidden, rotary=rotary, cache=kv_cache, metadata=metadata: layer(
                hidden, hidden, rotary, cache, metadata, None
            )


def _ways(decode_step: DecodeStep, device: torch.device, shares_prefix: bool) -> Iterator[DeviceMetadata]:
    def metadata() -> DeviceMetadata:
        none, start = torch.zeros(1, dtype=torch.int32, device=device), torch.arange(2, device=device).int()
        return DeviceMetadata(
            positions=none,
            slot_mapping=none - 1,
            block_tables=decode_step.block_tables[:1],
            seq_lens=none,
            workspace=decode_step.workspace,
            continued_start=start,
            fresh_start=start,
        )

    decode = metadata()
    decode.num_decodes, decode.continued_start, decode.fresh_start = 1, None, None
    yield decode
    continued = metadata()
    continued.num_continued = continued.num_continued_tokens = 1
    continued.fresh_start = None
    yield continued
    fresh = metadata()
    fresh.continued_start = None
    yield fresh
    if shares_prefix:
        shared = metadata()
        shared.num_decodes, shared.continued_start, shared.fresh_start = 1, None, None
        shared.shared = decode_step.shared_prefix(1)
        yield shared


def _around(model: CausalLM, rows: DeviceRows, decode_step: DecodeStep) -> Iterator[Callable[[], object]]:
    """What comes before the layers and after them."""
    device = rows.last_token.device
    embeddings = model.model.embed_tokens.weight
    yield lambda: model.compute_logits(torch.zeros(1, embeddings.shape[1], dtype=embeddings.dtype, device=device))
    batch = torch.full((1,), -1, dtype=torch.int32, device=device)
    ids, positions, slots, lengths = torch.zeros(4, 16, dtype=torch.int32, device=device).unbind()
    table = rows.block_table
    yield lambda: step_inputs.decode_inputs(
        batch, rows.last_token, rows.num_tokens, table, 16, ids[:1], positions[:1], slots[:1], lengths[:1]
    )
    yield lambda: step_inputs.gather_block_tables(batch, lengths[:1], table, 16, decode_step.block_tables[:1])
    yield lambda: rows.extend_blocks(ids[:1], ids[:1])
    yield lambda: rows.append(batch, ids[:1])
    for dtype in (decode_step.logits.dtype, torch.float32):
        logits = torch.zeros(1, decode_step.logits.shape[1], dtype=dtype, device=device)
        yield lambda logits=logits: sampling.greedy(logits, tokens=ids[:1], status=lengths[:1])
        for truncated in (False, True):
            yield lambda logits=logits, truncated=truncated: sampling.sample(
                logits, batch, rows.sampling, truncated=truncated, tokens=ids[:1], status=lengths[:1]
            )
        yield lambda logits=logits: logprobs.token_logprobs(logits, ids[:1], 2, index=ids[:1])
