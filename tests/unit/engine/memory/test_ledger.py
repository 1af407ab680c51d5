from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from appliance.config import Settings, resolve_values
from appliance.engine.memory.gpu_plan import estimate
from appliance.engine.memory.gpus import GPUS
from appliance.engine.memory.ledger import MemoryLedger, log_ledger
from appliance.engine.startup_errors import SettingsRefused
from tests.support.model_shapes import LLAMA_3_1_8B

LEDGER = MemoryLedger(
    total=80 * 2**30,
    weights=15 * 2**30,
    activations=2**30,
    cuda_graphs=2**28,
    kv_cache=4096 * 2**21,
    state=2**27,
    other=2**29,
    free=2**30,
    block_size=16,
    num_blocks=4096,
    max_model_len=4096,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    num_cuda_graphs=67,
    limited_by="kv-cache-memory",
)


def test_the_table_has_a_line_a_part_and_says_how_many_requests_run() -> None:
    assert LEDGER.as_lines() == [
        "weights              15.00 GiB",
        "activations           1.00 GiB  a step of 8,192 tokens",
        "CUDA graphs           0.25 GiB  67 graphs",
        "KV cache              8.00 GiB  65,536 tokens: 4,096 blocks of 16",
        "request state         0.12 GiB",
        "driver and others     0.50 GiB",
        "free                  1.00 GiB",
        "total                80.00 GiB",
        "16.0 requests of 4,096 tokens (max-model-len) run at once, or 256 (max-num-seqs) of 256 tokens; "
        "kv-cache-memory is the limit",
    ]


def test_where_the_cache_has_room_for_all_max_num_seqs_is_the_limit() -> None:
    few = estimate(LLAMA_3_1_8B, resolve_values({"max_num_seqs": 3}).settings, GPUS["h100"], 2)
    assert (
        MemoryLedger.of(few).as_lines()[-1].startswith("3 requests (max-num-seqs) run at once, each of up to 131,072")
    )


def test_lines_of_gib_add_up_as_printed() -> None:
    ledger = MemoryLedger.of(estimate(LLAMA_3_1_8B, Settings(), GPUS["h100"], 2))
    *parts, total = [float(found[1]) for line in ledger.as_lines() if (found := re.search(r"([\d.]+) GiB", line))]
    assert sum(parts) == pytest.approx(total, abs=0.04)


def test_the_example_in_the_documentation_is_what_is_printed() -> None:
    page = (Path(__file__).parents[4] / "docs" / "memory.md").read_text(encoding="utf-8")
    lines = MemoryLedger.of(estimate(LLAMA_3_1_8B, Settings(), GPUS["h100"], 2)).as_lines()
    assert "\n".join(lines) in page
    with pytest.raises(SettingsRefused) as caught:
        estimate(LLAMA_3_1_8B, Settings(), GPUS["l4"], 2)
    assert str(caught.value) in page.replace("\n", " ")


def test_as_json_it_has_the_bytes_and_what_follows_from_them() -> None:
    found = json.loads(json.dumps(LEDGER.as_json()))
    assert (found["kv_cache"], found["tokens"], found["concurrency"]) == (8 * 2**30, 65536, 16.0)


def test_it_is_logged_line_by_line_and_whole_for_programs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_ledger(logging.getLogger("some.engine"), LEDGER)
    assert [record.getMessage() for record in caplog.records] == [f"Memory: {line}" for line in LEDGER.as_lines()]
    assert caplog.records[0].__dict__["ledger"] is LEDGER
