"""The memory ledger: who has how much of the GPU, as the engine logs it at its start and `pagebox plan` prints it."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from appliance.engine.memory.gpu_plan import MemoryPlan


@dataclass(frozen=True, slots=True)
class MemoryLedger:
    """Bytes of one GPU; the seven parts sum to `total`."""

    total: int
    weights: int  # rotary tables included
    activations: int
    cuda_graphs: int
    kv_cache: int
    state: int  # of the requests, on the device
    other: int  # driver and other programs
    free: int
    block_size: int  # tokens
    num_blocks: int
    max_model_len: int  # tokens
    max_num_seqs: int
    max_num_batched_tokens: int
    num_cuda_graphs: int
    limited_by: str  # the setting that the size of the KV cache follows from

    @classmethod
    def of(cls, plan: MemoryPlan) -> MemoryLedger:
        footprint, kv_cache, shape = plan.footprint, plan.kv_cache, plan.shape
        return cls(
            total=plan.total,
            weights=footprint.weights,
            activations=footprint.activations,
            cuda_graphs=footprint.cuda_graphs,
            kv_cache=kv_cache.total_bytes,
            state=footprint.state,
            other=footprint.other,
            free=plan.free,
            block_size=kv_cache.block_size,
            num_blocks=kv_cache.num_blocks,
            max_model_len=kv_cache.max_model_len,
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.max_num_batched_tokens,
            num_cuda_graphs=shape.num_graphs,
            limited_by=plan.limited_by,
        )

    @property
    def tokens(self) -> int:
        """How many tokens the KV cache holds."""
        return self.num_blocks * self.block_size

    @property
    def concurrency(self) -> float:
        """How many requests of `max_model_len` the KV cache holds at once; max-num-seqs may allow fewer."""
        return self.num_blocks / -(-self.max_model_len // self.block_size)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"tokens": self.tokens, "concurrency": round(self.concurrency, 2)}

    def as_lines(self) -> list[str]:
        """A table of a few lines, largest matters first, and what limits how many requests run at once."""
        rows = [
            ("weights", self.weights, ""),
            ("activations", self.activations, f"a step of {self.max_num_batched_tokens:,} tokens"),
            ("CUDA graphs", self.cuda_graphs, f"{self.num_cuda_graphs} graphs" if self.num_cuda_graphs else ""),
            ("KV cache", self.kv_cache, f"{self.tokens:,} tokens: {self.num_blocks:,} blocks of {self.block_size}"),
            ("request state", self.state, ""),
            ("driver and others", self.other, ""),
            ("free", self.free, ""),
            ("total", self.total, ""),
        ]
        table = [f"{name:<18}{size / 2**30:>8.2f} GiB  {detail}".rstrip() for name, size, detail in rows]
        return [*table, self._concurrency_line()]

    def _concurrency_line(self) -> str:
        each = self.tokens // self.max_num_seqs
        if each >= self.max_model_len:
            return (
                f"{self.max_num_seqs:,} requests (max-num-seqs) run at once, each of up to {self.max_model_len:,} "
                f"tokens (max-model-len); the KV cache has room for {self.concurrency:,.1f}"
            )
        return (
            f"{self.concurrency:,.1f} requests of {self.max_model_len:,} tokens (max-model-len) run at once, or "
            f"{self.max_num_seqs:,} (max-num-seqs) of {each:,} tokens; {self.limited_by} is the limit"
        )


def log_ledger(log: logging.Logger, ledger: MemoryLedger) -> None:
    """One record a line; the first carries the ledger itself, as attribute `ledger`."""
    first, *rest = ledger.as_lines()
    log.info("Memory: %s", first, extra={"ledger": ledger})
    for line in rest:
        log.info("Memory: %s", line)
