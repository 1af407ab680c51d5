"""What an FP8 KV cache gains on one GPU: the same batches over a cache in bfloat16 and in FP8, side by side.

    PYTHONPATH=. python tests/benchmarks/gpu_fp8_cache.py

Decode should take half the time, as it reads half the bytes; a chunk of a prompt, whose limit are the matrix
instructions, and the cache write should take no longer. Every result is first compared with the reference on the same
cache. About 20 seconds, most of it compilation.
"""

from __future__ import annotations

import dataclasses

import torch

from appliance_kernels import reference
from appliance_kernels.triton_kernels.attention_configs import DecodeConfig, card, decode_config
from appliance_kernels.triton_kernels.attention_decode import decode_attention, decode_workspace
from appliance_kernels.triton_kernels.attention_decode_plan import plan_decode
from appliance_kernels.triton_kernels.attention_mixed import mixed_attention
from appliance_kernels.triton_kernels.rotary_kv import rotary_and_write_kv
from tests.benchmarks.gpu_attention import (
    BLOCK_SIZE,
    DEVICE,
    DTYPE,
    HEAD_DIM,
    READ_CEILING,
    Batch,
    attempt,
    checked,
    layer_time,
    make_batch,
    short,
)

FP8 = torch.float8_e4m3fn
HEADS = (32, 8)  # of queries, of keys and values
SCALE = HEAD_DIM**-0.5
DECODES = {"256 × 1024": [(1, 1024)] * 256, "16 × 8192": [(1, 8192)] * 16, "64 × 256": [(1, 256)] * 64}
CHUNKS = {"512 after 7680": [(512, 8192)], "512 beside 128 decodes at 600": [(1, 600)] * 128 + [(512, 512)]}


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    return dataclasses.replace(batch, caches=[cache.to(dtype) for cache in batch.caches])


def decode_configs(dtype: torch.dtype) -> list[DecodeConfig]:
    default = decode_config(DEVICE, HEAD_DIM, dtype)
    if dtype != FP8:
        return [default]
    sms = card(DEVICE).multiprocessors
    return [
        default,
        DecodeConfig(64, 2 * sms, 4, 4, 4),
        DecodeConfig(64, 3 * sms, 4, 4, 4),
        DecodeConfig(128, 2 * sms, 2, 8, 3),
        DecodeConfig(128, 3 * sms, 2, 4, 2),
        DecodeConfig(128, sms, 4, 8, 4),
        DecodeConfig(256, sms, 2, 8, 3),
    ]


def decode_cell(batch: Batch, want: torch.Tensor, config: DecodeConfig, kv_bytes: int) -> str:
    workspace = decode_workspace(len(batch.seq_lens), *HEADS, HEAD_DIM, config, DEVICE)
    out = torch.full(batch.q.shape, torch.nan, device=DEVICE, dtype=DTYPE)

    def layer(i: int, plan: object) -> None:
        decode_attention(
            batch.q, batch.caches[i], batch.tables, batch.seq_lens, SCALE, out=out, plan=plan, workspace=workspace
        )

    def prepare() -> object:
        return plan_decode(batch.seq_lens, HEADS[1], config)

    layer(0, prepare())
    verdict = checked(out, want)
    seconds = layer_time(prepare, layer, len(batch.caches))
    rate = kv_bytes / seconds / 1e9
    return f"{seconds * 1e6:7.1f} µs {rate:5.0f} GB/s {rate / READ_CEILING * 100:3.0f} %{verdict}"


def chunk_cell(batch: Batch, want: torch.Tensor) -> str:
    out = torch.full(batch.q.shape, torch.nan, device=DEVICE, dtype=DTYPE)

    def layer(i: int, _: object) -> None:
        mixed_attention(batch.q, batch.caches[i], batch.tables, batch.query_start, batch.seq_lens, SCALE, out=out)

    layer(0, None)
    verdict = checked(out, want)
    return f"{layer_time(lambda: None, layer, len(batch.caches)) * 1e6:7.1f} µs{verdict}"


def write_cell(tokens: int, dtype: torch.dtype) -> str:
    num_blocks = tokens // BLOCK_SIZE
    cache = torch.zeros(num_blocks, 2, HEADS[1], BLOCK_SIZE, HEAD_DIM, dtype=dtype, device=DEVICE)
    qkv = torch.randn(tokens, sum(HEADS) * HEAD_DIM + HEADS[1] * HEAD_DIM, dtype=DTYPE, device=DEVICE)
    angles = torch.rand(tokens, HEAD_DIM // 2, device=DEVICE)
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
    positions = torch.arange(tokens, device=DEVICE)
    slots = torch.randperm(tokens, device=DEVICE)

    def layer(_: int, __: object) -> None:
        rotary_and_write_kv(qkv, cos_sin, positions, cache, slots, *HEADS)

    return f"{layer_time(lambda: None, layer, 1) * 1e6:7.1f} µs"


def main() -> None:
    print(torch.cuda.get_device_name(), flush=True)
    for name, requests in DECODES.items():
        wide = make_batch(requests, *HEADS)
        elements = sum(length for _, length in requests) * 2 * HEADS[1] * HEAD_DIM
        for dtype in (DTYPE, FP8):
            batch = in_dtype(wide, dtype)
            want = reference.paged_attention(batch.q, batch.caches[0].to(DTYPE), batch.metadata, SCALE)
            for config in decode_configs(dtype):
                cell = attempt(
                    lambda b=batch, w=want, c=config, n=elements * dtype.itemsize: decode_cell(b, w, c, n)  # type: ignore[misc]
                )
                print(f"decode {name:12} {dtype!s:20} {short(config):18} {cell}", flush=True)
    for name, requests in CHUNKS.items():
        wide = make_batch(requests, *HEADS)
        for dtype in (DTYPE, FP8):
            batch = in_dtype(wide, dtype)
            want = reference.paged_attention(batch.q, batch.caches[0].to(DTYPE), batch.metadata, SCALE)
            print(f"chunk {name:30} {dtype!s:20} {attempt(lambda b=batch, w=want: chunk_cell(b, w))}", flush=True)  # type: ignore[misc]
    for tokens in (64, 8192):
        for dtype in (DTYPE, FP8):
            print(f"write {tokens:5} tokens {dtype!s:20} {write_cell(tokens, dtype)}", flush=True)


if __name__ == "__main__":
    main()
