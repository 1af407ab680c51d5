"""When each request will end, if the engine goes on as it does now."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.lifecycle.step_pace import StepPace


@dataclass(frozen=True, slots=True)
class Machine:
    """What an engine does at once, and how fast."""

    pace: StepPace
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """What one sequence asks of it."""

    to_compute: int  # known tokens without keys and values; 1 while it decodes
    known: int  # tokens, prompt and output
    to_generate: float  # tokens
    has_place: bool  # a row of the batch, and blocks for its known tokens


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds from now."""

    first_token: float
    end: float


def forecast(loads: Sequence[Load], machine: Machine) -> list[Times]:
    """The times of each of `loads`, which are in the order in which they get places.

    A fluid model of the scheduler: whatever decodes gets a token a step, prompts get what is left of the step's tokens
    one after another, and places are given in order as long as rows and memory last. Preemption is left out.
    """
    now, steps = 0.0, 0.0
    first, end = [0.0] * len(loads), [0.0] * len(loads)
    decoding: list[tuple[float, int]] = []  # heap of (the count of steps at which it ends, index)
    held = float(sum(load.known for load in loads if load.has_place))  # tokens in the cache
    places = sum(load.has_place for load in loads)
    prompts = []
    for i, load in enumerate(loads):
        if load.has_place and load.to_compute <= 1:
            decoding.append((load.to_generate, i))
        else:
            prompts.append(i)
    heapq.heapify(decoding)
    prompts.sort(key=lambda i: not loads[i].has_place)  # begun ones first
    at = 0
    left = float(loads[prompts[0]].to_compute) if prompts else 0.0  # of the prompt whose turn it is
    has_place = bool(prompts) and loads[prompts[0]].has_place
    while decoding or at < len(prompts):
        batch = len(decoding)
        if at < len(prompts) and not has_place:
            known = loads[prompts[at]].known
            if not places or (places < machine.max_num_seqs and held + known <= machine.kv_cache_tokens):
                has_place, places, held = True, places + 1, held + known
        computes = at < len(prompts) and has_place
        if computes:
            room = max(1, machine.max_num_batched_tokens - batch)
            num_steps = left / room  # a short prompt shares its step with others
            step_seconds = machine.pace.seconds(batch, room)
        else:
            num_steps, step_seconds = float("inf"), machine.pace.seconds(batch)
        ends = decoding[0][0] - steps if decoding else float("inf")
        passed = max(0.0, min(num_steps, ends))
        now += passed * step_seconds
        steps += passed
        held += passed * batch
        if computes:
            left -= passed * room
        if ends <= num_steps:
            _, i = heapq.heappop(decoding)
            end[i] = now
            places -= 1
            held -= loads[i].known + loads[i].to_generate
            continue
        i = prompts[at]
        step_rest = machine.pace.seconds(batch)  # its last token is computed, and the step ends
        first[i] = now + step_rest
        if loads[i].to_generate <= 1:
            end[i] = first[i]
            places -= 1
            held -= loads[i].known
        else:
            heapq.heappush(decoding, (steps + loads[i].to_generate, i))
        at += 1
        if at < len(prompts):
            left = float(loads[prompts[at]].to_compute)
            has_place = loads[prompts[at]].has_place
    return [Times(*times) for times in zip(first, end, strict=True)]
