"""Paged attention on the CPU: the meaning of `reference.paged_attention`, with as few and as large operations as torch has.

Keys and values are gathered by block and head in one indexed read, straight into the layout that the batched matrix
product takes. Single-token queries (decode) are batched in buckets of similar length; those that share a long prefix
read it once for all of them (the idea of Hydragen, Juravsky et al. 2024). Longer queries (prefill) run one by one
through torch's fused attention. The grouping is made once a step and serves every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from appliance_kernels.metadata import AttentionMetadata

# One more bucket costs about as much time as gathering and multiplying this many more padded tokens.
BUCKET_COST_TOKENS = 1024
# A shared prefix is read apart from the rest when that saves at least this many tokens of gathering.
MIN_SHARED_TOKENS = 1024


@dataclass(slots=True)
class _Decode:
    """Requests with one query token each."""

    tokens: torch.Tensor  # [B] rows of q
    blocks: torch.Tensor  # [B, n] blocks of each request, after the shared prefix if there is one
    mask: torch.Tensor  # [B, 1, n * block_size] float32: 0 where the key is seen, -inf elsewhere
    prefix_blocks: torch.Tensor | None  # [1, p] blocks that all B requests begin with


@dataclass(slots=True)
class _Prefill:
    """One request with several query tokens, q[start:end]."""

    start: int
    end: int
    blocks: torch.Tensor  # [1, n]
    num_keys: int
    mask: torch.Tensor | None  # [queries, num_keys] float32; None: plainly causal from position 0


def paged_attention(
    q: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, scale: float, sliding_window: int | None
) -> torch.Tensor:
    """Shapes and meaning as `reference.paged_attention`; scores are rounded to q's dtype before the softmax."""
    plan = metadata.plans.get(sliding_window)
    if plan is None:
        plan = metadata.plans[sliding_window] = _plan(metadata, sliding_window, q.dtype)
    decodes, prefills = plan
    if len(decodes) == 1 and not prefills and decodes[0].tokens.shape[0] == q.shape[0]:
        return _decode(q, kv_cache, decodes[0], scale)  # bucket order is request order: nothing to scatter
    out = torch.empty_like(q)
    for group in decodes:
        out[group.tokens] = _decode(q[group.tokens], kv_cache, group, scale)
    for request in prefills:
        out[request.start : request.end] = _prefill(q[request.start : request.end], kv_cache, request, scale)
    return out


def _gather(kv_cache: torch.Tensor, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of `blocks` [B, n], each [B * Hk, n * block_size, D], contiguous."""
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    batch, count = blocks.shape
    first = (blocks * (2 * num_kv_heads)).unsqueeze(1)  # the row of head 0's keys, of [num_blocks * 2 * Hk] rows
    heads = torch.arange(num_kv_heads).view(1, num_kv_heads, 1)
    rows = kv_cache.view(-1, block_size * head_dim)
    key_rows = (first + heads).view(-1)
    keys = rows.index_select(0, key_rows).view(batch * num_kv_heads, count * block_size, head_dim)
    values = rows.index_select(0, key_rows + num_kv_heads).view(batch * num_kv_heads, count * block_size, head_dim)
    return keys, values


def _decode(q: torch.Tensor, kv_cache: torch.Tensor, group: _Decode, scale: float) -> torch.Tensor:
    """q [B, Hq, D] → [B, Hq, D]."""
    batch, num_q_heads, head_dim = q.shape
    num_kv_heads = kv_cache.shape[2]
    shared = num_q_heads // num_kv_heads
    keys, values = _gather(kv_cache, group.blocks)
    queries = q.reshape(batch * num_kv_heads, shared, head_dim)
    mask = group.mask.expand(batch, num_kv_heads, -1).reshape(batch * num_kv_heads, 1, -1)
    scores = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=scale)
    if group.prefix_blocks is None:
        return torch.bmm(scores.softmax(-1), values).view(batch, num_q_heads, head_dim)

    prefix_keys, prefix_values = _gather(kv_cache, group.prefix_blocks)  # [Hk, p * block_size, D]
    length = prefix_keys.shape[1]
    by_head = (num_kv_heads, batch * shared)
    queries = queries.view(batch, num_kv_heads, shared, head_dim).transpose(0, 1).reshape(*by_head, head_dim)
    prefix_scores = torch.bmm(queries * scale, prefix_keys.transpose(1, 2))
    prefix_scores = prefix_scores.view(num_kv_heads, batch, shared, length).transpose(0, 1)
    own_scores = scores.view(batch, num_kv_heads, shared, -1)
    probabilities = torch.cat((prefix_scores, own_scores), -1).softmax(-1)
    of_prefix = probabilities[..., :length].transpose(0, 1).reshape(*by_head, length)
    of_own = probabilities[..., length:].reshape(batch * num_kv_heads, shared, -1)
    out = torch.bmm(of_prefix, prefix_values).view(num_kv_heads, batch, shared, head_dim).transpose(0, 1)
    own = torch.bmm(of_own, values).view(batch, num_kv_heads, shared, head_dim)
    return (out + own).reshape(batch, num_q_heads, head_dim)


def _prefill(q: torch.Tensor, kv_cache: torch.Tensor, request: _Prefill, scale: float) -> torch.Tensor:
    """q [n, Hq, D] → [n, Hq, D]."""
    count, num_q_heads, head_dim = q.shape
    keys, values = _gather(kv_cache, request.blocks)
    num_kv_heads = keys.shape[0]
    by_kv_head = (num_kv_heads, num_q_heads // num_kv_heads, -1, head_dim)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1).reshape(by_kv_head),
        keys[:, None, : request.num_keys].expand(by_kv_head),
        values[:, None, : request.num_keys].expand(by_kv_head),
        attn_mask=request.mask,
        is_causal=request.mask is None,
        scale=scale,
    )
    return out.reshape(num_q_heads, count, head_dim).transpose(0, 1)


def _plan(metadata: AttentionMetadata, window: int | None, dtype: torch.dtype) -> tuple[list[_Decode], list[_Prefill]]:
    starts = np.asarray(metadata.query_start)
    lengths = np.asarray(metadata.seq_lens)
    counts = np.diff(starts)
    tables = metadata.block_tables.numpy()
    block_size = metadata.block_size
    first_keys = np.zeros_like(lengths) if window is None else np.maximum(lengths - counts - window + 1, 0)
    first_blocks = first_keys // block_size
    num_blocks = -(-lengths // block_size) - first_blocks

    prefills = [
        _plan_prefill(tables[r], int(starts[r]), int(starts[r + 1]), int(lengths[r]), int(first_blocks[r]), block_size, window, dtype)
        for r in np.flatnonzero(counts > 1)
    ]
    decodes = []
    requests = np.flatnonzero(counts == 1)
    for group, prefix in _shared_prefixes(tables, requests, lengths, block_size, window):
        for bucket in _buckets(group, num_blocks - prefix, block_size):
            decodes.append(
                _plan_decode(tables, bucket, starts, lengths, first_blocks + prefix, num_blocks - prefix, prefix, block_size, window, dtype)
            )
    return decodes, prefills


def _shared_prefixes(
    tables: np.ndarray, requests: np.ndarray, lengths: np.ndarray, block_size: int, window: int | None
) -> list[tuple[np.ndarray, int]]:
    """Split `requests` into groups, each with the number of leading blocks it shares and reads once (0: none)."""
    if window is not None or len(requests) < 2:
        return [(requests, 0)] if len(requests) else []
    groups: list[tuple[np.ndarray, int]] = []
    alone = []
    first_block = tables[requests, 0]
    for block in np.unique(first_block):
        members = requests[first_block == block]
        if (len(members) - 1) * (int(lengths[members].min()) - 1) < MIN_SHARED_TOKENS:
            alone.append(members)
            continue
        # The newest token's block is its own: at least one key stays outside the prefix.
        limit = (int(lengths[members].min()) - 1) // block_size
        same = (tables[members, :limit] == tables[members[0], :limit]).all(0)
        common = limit if same.all() else int(same.argmin())
        if (len(members) - 1) * common * block_size < MIN_SHARED_TOKENS:
            alone.append(members)
        else:
            groups.append((members, common))
    if alone:
        groups.append((np.sort(np.concatenate(alone)), 0))
    return groups


def _buckets(requests: np.ndarray, num_blocks: np.ndarray, block_size: int) -> list[np.ndarray]:
    """Split by length, so that padding to the longest of a bucket costs less than another bucket would."""
    counts = num_blocks[requests]
    if (int(counts.max()) - counts).sum() * block_size <= BUCKET_COST_TOKENS:
        return [requests]
    buckets = []
    order = requests[np.argsort(-counts, kind="stable")]
    sizes = num_blocks[order]
    start = 0
    for i in range(1, len(order)):
        if (sizes[start] - sizes[i]) * block_size * (len(order) - i) > BUCKET_COST_TOKENS:
            buckets.append(np.sort(order[start:i]))
            start = i
    buckets.append(np.sort(order[start:]))
    return buckets


def _plan_decode(
    tables: np.ndarray,
    requests: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    first_blocks: np.ndarray,
    num_blocks: np.ndarray,
    prefix: int,
    block_size: int,
    window: int | None,
    dtype: torch.dtype,
) -> _Decode:
    count = int(num_blocks[requests].max())
    columns = first_blocks[requests, None] + np.arange(count)
    used = np.arange(count) < num_blocks[requests, None]
    blocks = np.where(used, tables[requests[:, None], np.where(used, columns, 0)], 0).astype(np.int64)
    key_position = first_blocks[requests, None] * block_size + np.arange(count * block_size)
    position = lengths[requests, None] - 1
    hidden = key_position > position
    if window is not None:
        hidden |= key_position <= position - window
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(torch.from_numpy(hidden), -torch.inf)
    return _Decode(
        tokens=torch.from_numpy(starts[requests].astype(np.int64)),
        blocks=torch.from_numpy(blocks),
        mask=mask.unsqueeze(1),
        prefix_blocks=torch.from_numpy(tables[requests[:1], :prefix].astype(np.int64)) if prefix else None,
    )


def _plan_prefill(
    table: np.ndarray, start: int, end: int, length: int, first_block: int, block_size: int, window: int | None, dtype: torch.dtype
) -> _Prefill:
    blocks = table[None, first_block : -(-length // block_size)].astype(np.int64)
    first_key = first_block * block_size
    count = end - start
    mask = None
    if count < length - first_key or (window is not None and length > window):
        position = torch.arange(length - count, length).unsqueeze(1)
        key_position = torch.arange(first_key, length).unsqueeze(0)
        hidden = key_position > position
        if window is not None:
            hidden |= key_position <= position - window
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
    return _Prefill(start, end, torch.from_numpy(blocks), length - first_key, mask)
