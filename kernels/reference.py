"""What every kernel means, in plain PyTorch. The elementwise ones are also what runs on the CPU.

Shapes: T tokens of the step, H hidden size, Hq query heads, Hk key/value heads, D head dimension.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from appliance_kernels.fp8_cache import stored_as
from appliance_kernels.metadata import AttentionMetadata


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square norm over the last dimension (Zhang & Sennrich 2019), computed in float32.

    x [..., H], weight [H]; returns x's shape and dtype.
    """
    # One reduction and four elementwise operations in place on a float32 copy: on the CPU that is faster than torch's
    # own composite at every size, because mixed dtypes make it copy each operand anyway.
    wide = x.to(torch.float32, copy=True)
    norm = torch.linalg.vector_norm(wide, 2, -1, True)
    scale = torch.addcmul(_scalar(eps, x.device), norm, norm, value=1.0 / x.shape[-1]).rsqrt_()
    return wide.mul_(scale).mul_(weight).to(x.dtype)


@functools.lru_cache(maxsize=64)
def _scalar(value: float, device: torch.device) -> torch.Tensor:
    """A float32 tensor of no dimensions, made once: in a decode step its making would take as long as using it."""
    return torch.tensor(value, dtype=torch.float32, device=device)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`residual + x`, and its norm. Returns (normed, new residual), both in x's shape and dtype."""
    residual = residual + x
    return rms_norm(residual, weight, eps), residual


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """SwiGLU's gate (Shazeer 2020): x [T, 2·I] holds gate and up side by side; returns silu(gate)·up, [T, I]."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate).mul_(up)


def gelu_tanh_and_mul(x: torch.Tensor) -> torch.Tensor:
    """GeGLU's gate with the tanh approximation: x [T, 2·I]; returns gelu(gate)·up, [T, I]."""
    gate, up = x.chunk(2, -1)
    return F.gelu(gate, approximate="tanh").mul_(up)


def rotary_rows(
    cos_sin: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rotation of each token, gathered once a step and used by every layer.

    cos_sin [max_len, rot_dim] float32 (cosines, then sines), positions [T] int64. Returns (cos, sin), each
    [T, 1, rot_dim] in `dtype`: the cosines twice, and the sines with the sign that the rolled half needs.
    """
    cos, sin = cos_sin.index_select(0, positions).chunk(2, -1)
    return (
        torch.cat((cos, cos), -1).to(dtype).unsqueeze(1),
        torch.cat((-sin, sin), -1).to(dtype).unsqueeze(1),
    )


def apply_rotary_(heads: torch.Tensor, rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Rotary position embedding (Su et al. 2021), half-split layout, in place.

    heads [T, heads, D]; the first rot_dim of D dimensions turn.
    """
    cos, sin = rows
    rot_dim = cos.shape[-1]
    turning = heads if rot_dim == heads.shape[-1] else heads[..., :rot_dim]
    rolled = turning.roll(rot_dim // 2, -1)
    turning.mul_(cos).addcmul_(rolled, sin)


def rotary_and_write_kv(
    qkv: torch.Tensor,
    rows: tuple[torch.Tensor, torch.Tensor],
    kv_cache: torch.Tensor,
    metadata: AttentionMetadata,
    num_q_heads: int,
    num_kv_heads: int,
    qk_norm: tuple[torch.Tensor, torch.Tensor, float] | None = None,
) -> torch.Tensor:
    """Norm and rotate queries and keys, store keys and values, return the queries.

    qkv [T, (Hq + 2·Hk)·D], overwritten; kv_cache [num_blocks, 2, Hk, block_size, D], of qkv's dtype or float8_e4m3fn
    (see `stored_as`), written at the step's slots; qk_norm (q weight [D], k weight [D], eps) norms each head first
    (Qwen3, Gemma 3).
    Returns q [T, Hq, D].
    """
    tokens = qkv.shape[0]
    heads = qkv.view(tokens, num_q_heads + 2 * num_kv_heads, -1)
    if qk_norm is not None:
        q_weight, k_weight, eps = qk_norm
        heads[:, :num_q_heads] = rms_norm(heads[:, :num_q_heads], q_weight, eps)
        keys = heads[:, num_q_heads : num_q_heads + num_kv_heads]
        keys.copy_(rms_norm(keys, k_weight, eps))
    apply_rotary_(heads[:, : num_q_heads + num_kv_heads], rows)
    by_token = kv_cache.permute(0, 3, 1, 2, 4)  # [num_blocks, block_size, 2, Hk, D]
    keys_values = heads[:, num_q_heads:].view(tokens, 2, num_kv_heads, -1)
    by_token.index_put_((metadata.slot_blocks, metadata.slot_offsets), stored_as(keys_values, kv_cache.dtype))
    return heads[:, :num_q_heads]


def paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal attention of each token over its request's paged keys and values (Kwon et al. 2023), in float32.

    q [T, Hq, D]; kv_cache [num_blocks, 2, Hk, block_size, D], of q's dtype or float8_e4m3fn, this step's keys and
    values already in it.
    A token at position p sees positions p - sliding_window + 1 … p (all up to p without a window).
    softcap c replaces each score s by c·tanh(s / c). Returns [T, Hq, D] in q's dtype.
    """
    out = torch.empty_like(q)
    heads_per_kv = q.shape[1] // kv_cache.shape[2]
    for r in range(metadata.num_requests):
        start, end = metadata.query_start[r], metadata.query_start[r + 1]
        length = metadata.seq_lens[r]
        blocks = metadata.block_tables[r, : -(-length // metadata.block_size)].long()
        keys, values = kv_cache[blocks].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length].float()  # [Hk, length, D]
        keys = keys.repeat_interleave(heads_per_kv, 0)
        values = values.repeat_interleave(heads_per_kv, 0)
        scores = torch.einsum("qhd,hkd->hqk", q[start:end].float(), keys) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        position = torch.arange(length - (end - start), length, device=q.device)[:, None]
        key_position = torch.arange(length, device=q.device)[None, :]
        hidden = key_position > position
        if sliding_window is not None:
            hidden |= key_position <= position - sliding_window
        probabilities = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[start:end] = torch.einsum("hqk,hkd->qhd", probabilities, values).to(q.dtype)
    return out


def sampling_distribution(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> torch.Tensor:
    """The probabilities [V] float64 with which a token is drawn, given logits [V] and a temperature above 0.

    Temperature scales first, then min-p, top-k (0: all) and top-p (Holtzman et al. 2020) cut, each over what the one
    before left, renormalized. Equal logits stay or go together: top-k keeps all that equal the k-th, top-p all that
    the more likely ones leave short of p.
    """
    probability = (logits.double() / temperature).softmax(-1)
    probability[probability < min_p * probability.max()] = 0.0
    if 0 < top_k < len(logits):
        probability[logits < logits.topk(top_k).values[-1]] = 0.0
    if top_p < 1.0:
        order = logits.argsort(descending=True, stable=True)
        running = probability[order].cumsum(0)
        # where the run of equals begins in which a place of the order lies
        first = torch.searchsorted(-logits[order], -logits[order])
        before = torch.where(first > 0, running[first - 1], 0.0)
        probability[order[before >= top_p * running[-1]]] = 0.0
        if not probability.any():  # p is too small even for the most likely
            probability[logits == logits.max()] = 1.0
    return probability / probability.sum()


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """One token for each row of logits [N, V]: the most likely at temperature 0, else a draw from
    `sampling_distribution` by Gumbel `noise` [N, V] (Gumbel 1954): the largest of logit / temperature + noise of those
    that have any probability. Parameters [N]. Returns [N] int64."""
    tokens = []
    for x, heat, k, p, floor, g in zip(
        logits, *(v.tolist() for v in (temperature, top_k, top_p, min_p)), noise, strict=True
    ):
        noisy = x.double() / heat + g if heat > 0.0 else x
        possible = sampling_distribution(x, heat, k, p, floor) > 0.0 if heat > 0.0 else x > -torch.inf
        tokens.append(int(noisy.masked_fill(~possible, -torch.inf).argmax()))
    return torch.tensor(tokens, dtype=torch.int64, device=logits.device)


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Natural logarithms of the softmax of logits [N, V], before temperature, penalties and constraints.

    Returns that of `tokens` [N]; its rank [N], 1 for the most likely; the `top` largest [N, top], descending, and their
    ids, lowest first among equals.
    """
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(1, tokens.long().unsqueeze(1))
    ranks = (logits > logits.gather(1, tokens.long().unsqueeze(1))).sum(-1) + 1
    ids = logits.float().argsort(dim=-1, descending=True, stable=True)[:, :top]
    return own.squeeze(1), ranks, logprobs.gather(1, ids), ids


def decode_inputs(
    rows: torch.Tensor,
    last_token: torch.Tensor,
    num_tokens: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(input ids, positions, slots, lengths), each [B], of the newest token of each of `rows` [B].

    State, one row a request: last_token, num_tokens, block_table [rows, columns]. A row that is negative or has no
    tokens is padding: token 0, position 0, slot -1, length 0.
    """
    lengths = torch.where(rows >= 0, num_tokens[rows.clamp(min=0)], 0).long()
    real = lengths > 0
    row, position = torch.where(real, rows, 0).long(), torch.where(real, lengths - 1, 0)
    slots = block_table[row, position // block_size].long() * block_size + position % block_size
    return torch.where(real, last_token[row], 0).long(), position, torch.where(real, slots, -1), lengths


def append_tokens(
    rows: torch.Tensor, sampled: torch.Tensor, last_token: torch.Tensor, num_tokens: torch.Tensor
) -> None:
    """Remember the `sampled` [B] token of each of `rows` [B], in place; padding as in `decode_inputs`."""
    real = (rows >= 0) & (num_tokens[rows.clamp(min=0)] > 0)
    row, token = rows[real].long(), sampled[real]
    last_token[row] = token.to(last_token.dtype)
    num_tokens[row] += 1
