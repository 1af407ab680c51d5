"""The events of one request's life, each as a line for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from appliance.protocol.wire import TraceEvent

_SHOWN_IDS = 12


class TraceLines:
    """Follows one request: what an event means depends on the blocks that the request holds when it happens."""

    def __init__(self, began: float, block_size: int, token_text: Callable[[int], str]) -> None:
        """`began` is `time.time()` at the intake; `token_text` shows a token on its own."""
        self._began = began
        self._block_size = block_size
        self._token_text = token_text
        self._blocks: list[int] = []

    def line(self, event: TraceEvent) -> str:
        return f"{(event.time - self._began) * 1000:10.1f} ms  {event.event:<16}  {self._words(event)}"

    def _words(self, event: TraceEvent) -> str:
        fields: dict[str, Any] = dict(event.fields)
        match event.event:
            case "tokenized":
                return f"{_count(len(fields['token_ids']), 'token')}: {_some(fields['token_ids'])}"
            case "queued":
                return f"{_count(fields['prompt_tokens'], 'token')}; {fields['waiting']} in the queue"
            case "admitted":
                self._blocks = list(fields["cached_block_ids"])
                cached = fields["cached_tokens"]
                where = f" in blocks {_some(self._blocks)}" if cached else ""
                return f"row {fields['row']}; {cached} tokens found in the prefix cache{where}"
            case "blocks_allocated":
                self._blocks += fields["block_ids"]
                return f"blocks {_some(fields['block_ids'])}; the block table is {_some(self._blocks)}"
            case "scheduled":
                return self._scheduled(fields)
            case "step":
                ran = f"{_count(fields['tokens'], 'token')} of {_count(fields['requests'], 'request')}"
                return f"step {fields['step']} ran {ran} in {fields['milliseconds']:.1f} ms"
            case "token":
                return f"{fields['token_id']} {self._token_text(fields['token_id'])!r}"
            case "preempted":
                self._blocks = []
                return (
                    f"{fields['blocks_freed']} blocks given up; its {fields['tokens']} tokens are computed again later"
                )
            case "finished":
                return f"{fields['reason']}; {_count(fields['blocks_freed'], 'block')} returned"
            case _:
                return ", ".join(f"{name} {value!r}" for name, value in fields.items())

    def _scheduled(self, fields: dict[str, Any]) -> str:
        first, count = fields["computed_tokens"], fields["tokens"]
        slots = [
            self._blocks[position // self._block_size] * self._block_size + position % self._block_size
            for position in range(first, first + count)
        ]
        positions = f"position {first}" if count == 1 else f"positions {first} to {first + count - 1}"
        return f"step {fields['step']}: {positions} into slot{'s' if count > 1 else ''} {_ranges(slots)}"


def _some(ids: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in ids[:_SHOWN_IDS])
    return f"[{shown}, … {len(ids) - _SHOWN_IDS} more]" if len(ids) > _SHOWN_IDS else f"[{shown}]"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _ranges(numbers: Sequence[int]) -> str:
    """Consecutive numbers as ranges: 0–31, 64–68."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in ranges)
