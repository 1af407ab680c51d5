from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from appliance.cli.trace_explained import EVENTS
from appliance.cli.trace_lines import TraceLines
from appliance.protocol.wire import TraceEvent

ROOT = Path(__file__).parents[3] / "appliance"


def told(lines: TraceLines, event: str, **fields: Any) -> str:
    return lines.line(TraceEvent("r", 100.25, event, fields)).split("  ", maxsplit=1)[1].strip().split("  ")[-1].strip()


def test_slots_follow_from_the_blocks_that_were_found_and_allocated() -> None:
    lines = TraceLines(100.0, block_size=4, token_text=str)
    told(lines, "admitted", row=0, cached_tokens=4, cached_block_ids=[7])
    told(lines, "blocks_allocated", block_ids=[2, 3])
    words = told(lines, "scheduled", step=5, tokens=7, computed_tokens=4)
    assert words == "step 5: positions 4 to 10 into slots 8–14"
    told(lines, "blocks_allocated", block_ids=[9])
    assert told(lines, "scheduled", step=6, tokens=3, computed_tokens=11) == (
        "step 6: positions 11 to 13 into slots 15, 36–37"
    )


def test_a_preempted_request_starts_over_with_other_blocks() -> None:
    lines = TraceLines(100.0, block_size=4, token_text=str)
    told(lines, "admitted", row=0, cached_tokens=0, cached_block_ids=[])
    told(lines, "blocks_allocated", block_ids=[0])
    told(lines, "preempted", blocks_freed=1, tokens=2)
    told(lines, "admitted", row=3, cached_tokens=0, cached_block_ids=[])
    told(lines, "blocks_allocated", block_ids=[5])
    assert told(lines, "scheduled", step=1, tokens=1, computed_tokens=0) == "step 1: position 0 into slot 20"


def test_times_count_from_the_intake() -> None:
    line = TraceLines(100.0, 4, str).line(TraceEvent("r", 100.25, "finished", {"reason": "stop", "blocks_freed": 2}))
    assert line.split() == ["250.0", "ms", "finished", "stop;", "2", "blocks", "returned"]


def test_long_lists_are_cut_and_say_how_long_they_are() -> None:
    words = told(TraceLines(100.0, 4, str), "tokenized", token_ids=list(range(100)))
    assert words.startswith("100 tokens: [0, 1, ")
    assert words.endswith("11, … 88 more]")


def test_every_event_that_is_reported_is_explained() -> None:
    call = re.compile(r"(?:_emit\(\s*request,|\.note\(|TraceEvent\(\w+, time\.time\(\),)\s*\"(\w+)\"")
    reported = set()
    for source in (ROOT / "engine" / "scheduler.py", ROOT / "engine" / "core.py", ROOT / "cli" / "trace.py"):
        reported.update(call.findall(source.read_text(encoding="utf-8")))
    assert reported == EVENTS.keys()
