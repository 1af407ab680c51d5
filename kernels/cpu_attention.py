"""Paged attention on the CPU: `reference.paged_attention` with as few and as large operations as torch has.

Keys and values are gathered by block and head in one indexed read, straight into the layout that the batched matrix
product takes. Requests with one query token (decode) or few (the rest of a cached prompt) are batched in buckets of
similar length; those that share a long prefix read it once for all of them (the idea of Hydragen, Juravsky et al.
2024). Longer queries (prefill) run one by one through torch's fused attention. The grouping is made once a step and
serves every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from appliance_kernels.fp8_cache import from_e4m3
from appliance_kernels.metadata import AttentionMetadata

# One more bucket costs about as much time as gathering and multiplying this many more padded tokens.
BUCKET_COST_TOKENS = 1024
# Requests with more query tokens than this run alone: their products are large enough.
MAX_BATCHED_QUERIES = 256
# A shared prefix is read apart from the rest when that saves at least this many tokens of gathering.
MIN_SHARED_TOKENS = 1024


@dataclass(slots=True)
class _Rows:
    """Where keys and values of B requests lie in the cache seen as rows of block_size * D, one per block and head."""

    index: torch.Tensor  # [2 * B * Hk * n]: all keys, then all values
    batch: int


@dataclass(slots=True)
class _Batch:
    """B requests with up to c query tokens each, whose last one is repeated up to c."""

    tokens: torch.Tensor  # [B * c] rows of q
    rows: _Rows  # n blocks of each request, after the shared prefix if there is one
    mask: (
        torch.Tensor
    )  # [B * Hk, c * heads per Hk, n * block_size]: 0 where the key is seen, -inf elsewhere; c = 1: one row
    prefix_rows: _Rows | None  # the blocks that all B requests begin with, once


@dataclass(slots=True)
class _Alone:
    """One request that runs alone, q[start:end], over the keys `first_key:last_key` of its gathered blocks."""

    start: int
    end: int
    rows: _Rows
    first_key: int
    last_key: int
    mask: torch.Tensor | None  # [queries, keys]: 0 where the key is seen, -inf elsewhere
    causal: bool  # without a mask: query i sees the first i + 1 keys; otherwise it sees all


def paged_attention(
    q: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, scale: float, sliding_window: int | None
) -> torch.Tensor:
    """Shapes and meaning as `reference.paged_attention`; scores are rounded to q's dtype before the softmax."""
    plan = metadata.plans.get(sliding_window)
    if plan is None:
        heads = (kv_cache.shape[2], q.shape[1] // kv_cache.shape[2])
        plan = metadata.plans[sliding_window] = _Planner(metadata, sliding_window, heads, q.dtype).plan()
    batches, alone = plan
    if len(batches) == 1 and not alone and len(batches[0].tokens) == len(q):
        return _attend_batch(q, kv_cache, batches[0], scale)  # its order is the order of q: nothing to scatter
    if len(alone) == 1 and not batches:
        return _attend_alone(q, kv_cache, alone[0], scale)
    out = torch.empty_like(q)
    for batch in batches:
        out[batch.tokens] = _attend_batch(q[batch.tokens], kv_cache, batch, scale)
    for request in alone:
        out[request.start : request.end] = _attend_alone(q[request.start : request.end], kv_cache, request, scale)
    return out


def _gather(kv_cache: torch.Tensor, rows: _Rows, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values in `dtype`, each [B * Hk, n * block_size, D], contiguous."""
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    gathered = kv_cache.view(-1, block_size * head_dim).index_select(0, rows.index)
    if kv_cache.dtype == torch.float8_e4m3fn:
        gathered = from_e4m3(gathered, dtype)
    keys, values = gathered.view(2, rows.batch * num_kv_heads, -1, head_dim)
    return keys, values


def _attend_batch(q: torch.Tensor, kv_cache: torch.Tensor, batch: _Batch, scale: float) -> torch.Tensor:
    """q [B * c, Hq, D] → [B * c, Hq, D]. Heads that share keys are rows of one product, token by token."""
    tokens, num_q_heads, head_dim = q.shape
    num_kv_heads = kv_cache.shape[2]
    num_requests = batch.rows.batch
    count = tokens // num_requests
    shared = num_q_heads // num_kv_heads
    keys, values = _gather(kv_cache, batch.rows, q.dtype)
    by_request = (num_requests, num_kv_heads, count * shared)
    by_product = (num_requests * num_kv_heads, count * shared, head_dim)
    queries = q.reshape(num_requests, count, num_kv_heads, shared, head_dim).transpose(1, 2).reshape(by_product)
    scores = torch.baddbmm(batch.mask, queries, keys.transpose(1, 2), alpha=scale)
    if batch.prefix_rows is None:
        out = torch.bmm(scores.softmax(-1), values)
    else:
        prefix_keys, prefix_values = _gather(kv_cache, batch.prefix_rows, q.dtype)  # [Hk, p * block_size, D]
        length = prefix_keys.shape[1]
        by_head = (num_kv_heads, num_requests * count * shared, head_dim)
        prefix_queries = queries.reshape(*by_request, head_dim).transpose(0, 1).reshape(by_head) * scale
        prefix_scores = torch.bmm(prefix_queries, prefix_keys.transpose(1, 2))
        prefix_scores = prefix_scores.view(num_kv_heads, num_requests, count * shared, length).transpose(0, 1)
        probabilities = torch.cat((prefix_scores, scores.view(*by_request, -1)), -1).softmax(-1)
        out = torch.bmm(probabilities[..., length:].reshape(*by_product[:2], -1), values).view(*by_request, head_dim)
        of_prefix = torch.bmm(probabilities[..., :length].transpose(0, 1).reshape(*by_head[:2], length), prefix_values)
        out += of_prefix.view(num_kv_heads, num_requests, count * shared, head_dim).transpose(0, 1)
    if count == 1:
        return out.view(tokens, num_q_heads, head_dim)
    return out.view(num_requests, num_kv_heads, count, shared, head_dim).transpose(1, 2).reshape(q.shape)


def _attend_alone(q: torch.Tensor, kv_cache: torch.Tensor, request: _Alone, scale: float) -> torch.Tensor:
    """q [n, Hq, D] → [n, Hq, D]."""
    count, num_q_heads, head_dim = q.shape
    gathered = _gather(kv_cache, request.rows, q.dtype)
    keys, values = (part[:, None, request.first_key : request.last_key] for part in gathered)
    num_kv_heads = keys.shape[0]
    shared = num_q_heads // num_kv_heads
    queries = q.view(count, num_kv_heads, shared, head_dim)
    if count == 1:  # heads that share keys become rows of one product, so the keys are read once for all of them
        out = F.scaled_dot_product_attention(queries.view(num_kv_heads, 1, shared, head_dim), keys, values, scale=scale)
        return out.view(1, num_q_heads, head_dim)
    by_kv_head = (num_kv_heads, shared, -1, head_dim)
    out = F.scaled_dot_product_attention(
        queries.permute(1, 2, 0, 3),
        keys.expand(by_kv_head),
        values.expand(by_kv_head),
        attn_mask=request.mask,
        is_causal=request.causal,
        scale=scale,
    )
    return out.reshape(num_q_heads, count, head_dim).transpose(0, 1)


class _Planner:
    """Groups the requests of one step for one sliding window (None: none)."""

    def __init__(
        self, metadata: AttentionMetadata, window: int | None, heads: tuple[int, int], dtype: torch.dtype
    ) -> None:
        """`heads`: (key/value heads, query heads for each of them)."""
        self.starts = np.asarray(metadata.query_start)
        self.lengths = np.asarray(metadata.seq_lens)
        self.counts = np.diff(self.starts)
        self.tables = metadata.block_tables.numpy()
        self.block_size = metadata.block_size
        self.window = window
        self.num_kv_heads, self.heads_per_kv = heads
        self.dtype = dtype
        oldest = 0 if window is None else np.maximum(self.lengths - self.counts - window + 1, 0)
        self.first_keys = oldest + np.zeros_like(self.lengths)  # oldest key that any query of the request sees
        self.first_blocks = self.first_keys // self.block_size
        self.num_blocks = -(-self.lengths // self.block_size) - self.first_blocks

    def plan(self) -> tuple[list[_Batch], list[_Alone]]:
        alone = list(np.flatnonzero(self.counts > MAX_BATCHED_QUERIES))
        batches = []
        widths = np.where(self.counts == 1, 1, np.maximum(2 ** np.ceil(np.log2(self.counts)).astype(np.int64), 8))
        for width in np.unique(widths[widths <= MAX_BATCHED_QUERIES]):
            for group, prefix in self._shared_prefixes(np.flatnonzero(widths == width)):
                for bucket in _buckets(group, self.num_blocks - prefix, self.block_size):
                    if len(bucket) == 1 and not prefix:
                        alone.append(bucket[0])  # the fused attention beats a batch of one
                    else:
                        batches.append(self._batch(bucket, prefix, int(width)))
        return batches, [self._alone(int(r)) for r in alone]

    def _shared_prefixes(self, requests: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """Split `requests` into groups, each with the number of leading blocks that it shares and reads once."""
        if self.window is not None or len(requests) < 2:
            return [(requests, 0)]
        groups: list[tuple[np.ndarray, int]] = []
        rest = []
        first_block = self.tables[requests, 0]
        for block in np.unique(first_block):
            members = requests[first_block == block]
            # What every query sees whole: at least one key, the query's own, stays outside the prefix.
            limit = int((self.lengths[members] - self.counts[members]).min()) // self.block_size
            common = 0
            if self._worth_sharing(len(members), limit):
                same = (self.tables[members, :limit] == self.tables[members[0], :limit]).all(0)
                common = limit if same.all() else int(same.argmin())
            if self._worth_sharing(len(members), common):
                groups.append((members, common))
            else:
                rest.append(members)
        if rest:
            groups.append((np.sort(np.concatenate(rest)), 0))
        return groups

    def _worth_sharing(self, num_requests: int, num_blocks: int) -> bool:
        return (num_requests - 1) * num_blocks * self.block_size >= MIN_SHARED_TOKENS

    def _rows(self, blocks: np.ndarray) -> _Rows:
        """blocks [B, n]"""
        first = blocks.astype(np.int64)[:, None, :] * (2 * self.num_kv_heads)  # head 0's keys
        keys = (first + np.arange(self.num_kv_heads)[None, :, None]).reshape(-1)
        return _Rows(torch.from_numpy(np.concatenate((keys, keys + self.num_kv_heads))), len(blocks))

    def _mask(self, hidden: np.ndarray) -> torch.Tensor:
        return torch.zeros(hidden.shape, dtype=self.dtype).masked_fill_(torch.from_numpy(hidden), -torch.inf)

    def _hidden(self, key_position: np.ndarray, position: np.ndarray) -> np.ndarray:
        hidden = key_position > position
        if self.window is not None:
            hidden |= key_position <= position - self.window
        return hidden

    def _batch(self, requests: np.ndarray, prefix: int, width: int) -> _Batch:
        num_blocks = self.num_blocks[requests, None] - prefix
        first_blocks = self.first_blocks[requests, None] + prefix
        count = int(num_blocks.max())
        used = np.arange(count) < num_blocks
        columns = np.where(used, first_blocks + np.arange(count), 0)
        blocks = np.where(used, self.tables[requests[:, None], columns], 0)
        key_position = first_blocks * self.block_size + np.arange(count * self.block_size)
        query = np.minimum(np.arange(width), self.counts[requests, None] - 1)  # [B, c], the last one repeated
        position = (self.lengths - self.counts)[requests, None] + query
        mask = self._mask(self._hidden(key_position[:, None, :], position[:, :, None]))
        if width > 1:
            mask = mask.repeat_interleave(self.heads_per_kv, 1)
        return _Batch(
            tokens=torch.from_numpy((self.starts[requests, None] + query).reshape(-1).astype(np.int64)),
            rows=self._rows(blocks),
            mask=mask.repeat_interleave(self.num_kv_heads, 0),
            prefix_rows=self._rows(self.tables[requests[:1], :prefix]) if prefix else None,
        )

    def _alone(self, r: int) -> _Alone:
        first_block, count, length = int(self.first_blocks[r]), int(self.counts[r]), int(self.lengths[r])
        base = first_block * self.block_size
        first_key = int(self.first_keys[r])
        from_start = count == length  # no earlier keys: torch's own causal mask is the right one
        plain = count == 1 or (from_start and (self.window is None or length <= self.window))
        mask = None
        if not plain:
            position = np.arange(length - count, length)[:, None]
            mask = self._mask(self._hidden(np.arange(first_key, length)[None, :], position))
        return _Alone(
            start=int(self.starts[r]),
            end=int(self.starts[r + 1]),
            rows=self._rows(self.tables[r : r + 1, first_block : first_block + int(self.num_blocks[r])]),
            first_key=first_key - base,
            last_key=length - base,
            mask=mask,
            causal=plain and count > 1,
        )


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
