"""Random batches for the Triton attention kernels, and each kernel compared with the plain reference on them."""

from __future__ import annotations

import dataclasses
import random

import torch

from tests.unit.kernels.triton_device import DEVICE  # isort: skip  # before the kernels

from appliance_kernels import reference
from appliance_kernels.metadata import AttentionMetadata
from appliance_kernels.triton_kernels.attention_configs import DecodeConfig, TileConfig
from appliance_kernels.triton_kernels.attention_decode import decode_attention, decode_workspace
from appliance_kernels.triton_kernels.attention_decode_plan import plan_decode
from appliance_kernels.triton_kernels.attention_mixed import mixed_attention
from appliance_kernels.triton_kernels.attention_shared_prefix import (
    shared_prefix_decode_attention,
    shared_prefix_workspace,
)
from tests.unit.kernels.paged import random_batch

# Against a reference in float32 on the same inputs. float32 differs by summation order and by exp2 for exp. In 16 bits
# the probabilities are rounded before they meet the values, and the output once more: each half a unit in the last
# place (2⁻⁹ of bfloat16, 2⁻¹² of float16) relative to values of size 1 … 4, so 2⁻⁹ · 4 times four leaves room, and one
# key too many or too few in a context of hundreds is still seen.
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
FP8 = torch.float8_e4m3fn
SMALL_DECODE = DecodeConfig(tile=32, num_programs=5, min_tiles=1, num_warps=4, num_stages=2)
SMALL_TILES = TileConfig(rows=16, tile=32, num_warps=4, num_stages=2)


@dataclasses.dataclass
class Batch:
    """Random requests over a cache whose unused memory is NaN."""

    metadata: AttentionMetadata
    q: torch.Tensor
    kv_cache: torch.Tensor
    tables: torch.Tensor
    query_start: torch.Tensor
    seq_lens: torch.Tensor
    scale: float

    def reference(self, window: int | None = None, softcap: float | None = None) -> torch.Tensor:
        clean = self.kv_cache.float().nan_to_num(0.0)
        return reference.paged_attention(self.q, clean, self.metadata, self.scale, window, softcap)

    def poisoned_out(self) -> torch.Tensor:
        return torch.full(self.q.shape, torch.nan, dtype=self.q.dtype, device=DEVICE)


def make_batch(
    requests: list[tuple[int, int]],
    *,
    heads: tuple[int, int] = (2, 3),
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    shared_blocks: int = 0,
    seed: int | None = None,
) -> Batch:
    """Requests of (query tokens, total tokens); heads are (key/value heads, query heads for each)."""
    seed = random.randrange(10**6) if seed is None else seed
    torch.manual_seed(seed)
    num_kv_heads, per_kv = heads
    num_blocks = 2 + shared_blocks + sum(-(-length // block_size) for _, length in requests)
    metadata = random_batch(requests, block_size, num_blocks, shared_blocks=shared_blocks, seed=seed)
    cache = torch.full((num_blocks, 2, num_kv_heads, block_size, head_dim), torch.nan)
    for r, (_, length) in enumerate(requests):
        for i in range(-(-length // block_size)):
            used = min(block_size, length - i * block_size)
            block = cache[metadata.block_tables[r, i], :, :, :used]
            block[block.isnan()] = torch.randn(int(block.isnan().sum()))
    # queries as the kernels get them: a view of wider rows
    qkv = torch.randn(metadata.query_start[-1], num_kv_heads * (per_kv + 2), head_dim).to(DEVICE, dtype)
    metadata.block_tables = metadata.block_tables.to(DEVICE)
    return Batch(
        metadata=metadata,
        q=qkv[:, : num_kv_heads * per_kv],
        kv_cache=cache.to(cache_dtype or dtype).to(DEVICE),
        tables=metadata.block_tables,
        query_start=torch.tensor(metadata.query_start, dtype=torch.int32, device=DEVICE),
        seq_lens=torch.tensor(metadata.seq_lens, dtype=torch.int32, device=DEVICE),
        scale=head_dim**-0.5,
    )


def assert_close(got: torch.Tensor, want: torch.Tensor, cache_dtype: torch.dtype | None = None) -> None:
    """An FP8 cache is multiplied in float16, whatever the dtype of the result."""
    tolerance = max(TOLERANCE[want.dtype], TOLERANCE[torch.float16] if cache_dtype == FP8 else 0.0)
    torch.testing.assert_close(got.float(), want.float(), atol=tolerance, rtol=0)


def check_decode(lengths, *, window=None, softcap=None, config=SMALL_DECODE, **shape):
    batch = make_batch([(1, length) for length in lengths], **shape)
    out = batch.poisoned_out()
    workspace = decode_workspace(*batch.q.shape[:2], *batch.kv_cache.shape[2:5:2], config, DEVICE)
    plan = plan_decode(batch.seq_lens, batch.kv_cache.shape[2], config, sliding_window=window)
    got = decode_attention(
        batch.q,
        batch.kv_cache,
        batch.tables,
        batch.seq_lens,
        batch.scale,
        sliding_window=window,
        softcap=softcap,
        out=out,
        plan=plan,
        workspace=workspace,
    )
    assert got is out
    assert workspace.counters.abs().max() == 0, "ready for the next launch"
    assert_close(out, batch.reference(window, softcap), batch.kv_cache.dtype)


def check_mixed(requests, *, window=None, softcap=None, config=SMALL_TILES, **shape):
    batch = make_batch(requests, **shape)
    out = batch.poisoned_out()
    mixed_attention(
        batch.q,
        batch.kv_cache,
        batch.tables,
        batch.query_start,
        batch.seq_lens,
        batch.scale,
        sliding_window=window,
        softcap=softcap,
        out=out,
        config=config,
    )
    assert_close(out, batch.reference(window, softcap), batch.kv_cache.dtype)


def check_shared(
    lengths, shared_blocks, *, alone=(), window=None, softcap=None, splits=3, decode=SMALL_DECODE, **shape
):
    """Requests that share their first blocks, and then some that share nothing."""
    block_size = shape.get("block_size", 16)
    batch = make_batch([(1, length) for length in lengths], shared_blocks=shared_blocks, **shape)
    shared = torch.full((len(lengths),), shared_blocks * block_size, dtype=torch.int32, device=DEVICE)
    shared[list(alone)] = 0
    out = batch.poisoned_out()
    num_q_heads, (num_kv_heads, head_dim) = batch.q.shape[1], batch.kv_cache.shape[2:5:2]
    workspace = shared_prefix_workspace(len(lengths), num_q_heads, num_kv_heads, head_dim, splits, decode, DEVICE)
    for scratch in (workspace.prefix_acc, workspace.prefix_stats, workspace.decode.partial_acc):
        scratch.fill_(torch.nan)
    tables = batch.tables.clone()
    tables[[r for r in range(len(lengths)) if r not in alone], :shared_blocks] = -(2**30)  # never read
    plan = plan_decode(batch.seq_lens, num_kv_heads, decode, sliding_window=window, num_shared_tokens=shared)
    shared_prefix_decode_attention(
        batch.q,
        batch.kv_cache,
        tables,
        batch.seq_lens,
        batch.scale,
        prefix_table=batch.tables[0],
        num_shared_tokens=shared,
        sliding_window=window,
        softcap=softcap,
        out=out,
        plan=plan,
        workspace=workspace,
        config=SMALL_TILES,
    )
    assert_close(out, batch.reference(window, softcap), batch.kv_cache.dtype)
