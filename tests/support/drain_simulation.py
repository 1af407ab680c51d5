"""A machine that has to end, in simulated time: the real scheduler and engine core, a device that only takes time.

`run` lets one policy drain it. `could_finish` is the oracle: it knows every length beforehand.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.engine.core import EngineCore
from appliance.engine.kv_cache.manager import KVCacheManager
from appliance.engine.scheduler import Scheduler
from appliance.engine.scheduler_config import SchedulerConfig
from appliance.engine.step import ModelOutput, SchedulerOutput
from appliance.lifecycle.drain_planner import Outlook
from appliance.lifecycle.step_pace import StepPace
from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import AddRequest

END_OF_SEQUENCE, WORD = 2, 1
NOTICE_SECONDS = 83.0  # a spot notice of 95 s, less the 12 s in which the machine leaves its balancers and ends
WARM_UP_SECONDS = 150.0
PACE = StepPace(base=0.025, per_sequence=0.00015, per_prompt_token=0.00005)


@dataclass(frozen=True)
class Kind:
    """One kind of request, by log-normal lengths."""

    share: float
    prompt: tuple[float, float]  # median, sigma
    output: tuple[float, float]
    max_tokens: int
    ignore_eos: bool = False  # the output is exactly max_tokens long


@dataclass(frozen=True)
class Scenario:
    name: str
    kinds: tuple[Kind, ...]
    arrivals_per_second: float
    waiting_at_notice: int = 0  # beside those that arrived by themselves
    arrivals_after_notice: float = 5.0  # seconds, until balancers have noticed


CHAT = Kind(0.65, (300, 0.8), (200, 0.8), 2048)
DOCUMENTS = Kind(0.20, (3000, 0.5), (130, 0.6), 512)
WRITING = Kind(0.12, (200, 0.5), (2200, 0.6), 8192)
FIXED = Kind(0.03, (500, 0.3), (1, 0.0), 4096, ignore_eos=True)
JOBS = Kind(1.0, (400, 0.5), (1, 0.0), 600, ignore_eos=True)
SCENARIOS = (
    Scenario("mixed load", (CHAT, DOCUMENTS, WRITING, FIXED), 1.7),
    Scenario("mixed load, 200 more waiting", (CHAT, DOCUMENTS, WRITING, FIXED), 1.7, 200),
    Scenario("jobs of known length, 300 waiting", (JOBS,), 2.0, 300),
)


@dataclass
class Traffic:
    """Requests, with the lengths that their outputs will have."""

    scenario: Scenario
    generator: random.Random
    lengths: dict[str, int] = field(default_factory=dict)
    prompts: dict[str, int] = field(default_factory=dict)

    def draw(self, now: float) -> AddRequest:
        kinds = self.scenario.kinds
        kind = self.generator.choices(kinds, [k.share for k in kinds])[0]
        prompt = min(7000, max(1, round(kind.prompt[0] * self.generator.lognormvariate(0, kind.prompt[1]))))
        length = max(1, round(kind.output[0] * self.generator.lognormvariate(0, kind.output[1])))
        request_id = f"request-{len(self.lengths)}"
        self.lengths[request_id] = kind.max_tokens if kind.ignore_eos else min(length, kind.max_tokens)
        self.prompts[request_id] = prompt
        first = len(self.lengths)  # no two prompts share a prefix
        sampling = SamplingParams(max_tokens=kind.max_tokens, ignore_eos=kind.ignore_eos, seed=0)
        return AddRequest(request_id, [first, *[WORD] * (prompt - 1)], sampling, arrival_time=now)


class Device:
    """An executor whose steps take `PACE`, give or take some; a row ends when it is as long as `lengths` says."""

    depth = 1

    def __init__(self, lengths: dict[str, int], jitter: random.Random | None) -> None:
        self.now = 0.0
        self._lengths = lengths
        self._jitter = jitter
        self._left: dict[int, int] = {}  # by row: tokens to generate
        self._to_compute: dict[int, int] = {}

    def time(self) -> float:
        return self.now

    def submit(self, step: SchedulerOutput) -> Callable[[], ModelOutput]:
        for new in step.new_rows:
            generated = len(new.token_ids) - new.num_prompt_tokens
            self._left[new.row] = self._lengths[new.request_id] - generated
            self._to_compute[new.row] = len(new.token_ids)
        sampled: list[list[int]] = []
        for row, computed, scheduled in zip(
            step.rows, step.num_computed_tokens, step.num_scheduled_tokens, strict=True
        ):
            tokens = []
            if computed + scheduled == self._to_compute[row]:
                self._to_compute[row] += 1
                self._left[row] -= 1
                tokens = [WORD if self._left[row] else END_OF_SEQUENCE]
            sampled.append(tokens)
        sequences = len(step.rows)
        seconds = PACE.seconds(sequences, step.total_tokens - sequences)
        self.now += seconds * (self._jitter.uniform(0.8, 1.2) if self._jitter else 1.0)
        return lambda: ModelOutput(sampled)


class World:
    """One machine under its traffic."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.traffic = Traffic(scenario, random.Random(seed))
        self.device = Device(self.traffic.lengths, random.Random(seed + 1))
        config = SchedulerConfig(
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            max_model_len=16384,
            eos_token_ids=(END_OF_SEQUENCE,),
        )
        self.scheduler = Scheduler(config, KVCacheManager(20_000, 16), self.device.time)
        self.core = EngineCore(self.scheduler, self.device, clock=self.device.time)
        self.ended: dict[str, str] = {}  # finish reasons
        self.refused = 0
        self.live: list[str] = []
        self._arrivals = random.Random(seed + 2)
        self._next_arrival = 0.0

    def warm_up(self) -> None:
        while self.device.now < WARM_UP_SECONDS:
            self.arrive()
            self.step()
        for _ in range(self.traffic.scenario.waiting_at_notice):
            self.add(self.traffic.draw(self.device.now))

    def arrive(self, admits: Callable[[AddRequest], bool] = lambda request: True) -> None:
        while self._next_arrival <= self.device.now:
            request = self.traffic.draw(self.device.now)
            self._next_arrival += self._arrivals.expovariate(self.traffic.scenario.arrivals_per_second)
            if admits(request):
                self.add(request)
            else:
                self.refused += 1

    def add(self, request: AddRequest) -> None:
        assert self.core.add(request) is None
        self.live.append(request.request_id)

    def step(self) -> None:
        if not self.core.has_work():
            self.device.now = max(self._next_arrival, self.device.now + 0.001)
            return
        for delta in self.core.step():
            if delta.finish_reason is not None:
                self.ended[delta.request_id] = delta.finish_reason

    def pending(self) -> list[str]:
        return [request_id for request_id in self.live if request_id not in self.ended]


@dataclass(frozen=True)
class Outcome:
    """What became of the requests that were there when the notice came, and of those that came after it."""

    finished: frozenset[str]
    told: frozenset[str]  # ended with an error that says how to go on elsewhere
    cut_off: frozenset[str]  # ended with the machine
    seconds_until_told: float  # mean, of those that did not finish
    admitted_later: int
    finished_later: int
    refused: int


def at_notice(scenario: Scenario, seed: int = 1) -> World:
    world = World(scenario, seed)
    world.warm_up()
    return world


def run(world: World, policy: str, seconds: float) -> Outcome:
    """`policy`: "drain", "abort" or "wait". `world` stays as it is."""
    world = copy.deepcopy(world)
    there, num_before = world.pending(), len(world.live)
    began, deadline = world.device.now, world.device.now + seconds
    if policy == "drain":
        world.core.drain(deadline)

    def admits(request: AddRequest) -> bool:
        told = world.core.stats().drain
        if policy != "drain" or told is None:
            return False
        outlook = Outlook(told.start, told.seconds_per_prompt_token, told.seconds_per_token, told.typical_tokens)
        most = request.sampling.max_tokens or 0
        least = most if request.sampling.ignore_eos else 1
        return outlook.fits(len(request.prompt_token_ids), least, most, deadline - world.device.now)

    told_after: dict[str, float] = {}
    while policy != "abort" and world.device.now < deadline and world.core.has_work():
        if world.device.now < began + world.traffic.scenario.arrivals_after_notice:
            world.arrive(admits)
        world.step()
        for request_id in world.ended:
            told_after.setdefault(request_id, world.device.now - began)
    finished = {i for i, reason in world.ended.items() if reason in ("stop", "length")}
    told = {i for i in there if world.ended.get(i) == "shed"}
    others = [i for i in there if i not in finished]
    later = world.live[num_before:]
    return Outcome(
        finished=frozenset(finished.intersection(there)),
        told=frozenset(told),
        cut_off=frozenset(others) - told,
        seconds_until_told=sum(told_after.get(i, 0.0 if policy == "abort" else seconds) for i in others)
        / max(1, len(others)),
        admitted_later=len(later),
        finished_later=len(finished.intersection(later)),
        refused=world.refused,
    )


def could_finish(world: World, seconds: float) -> frozenset[str]:
    """The oracle: of those that are there, the most that can all end in time, the shortest first."""
    there = world.pending()
    steps = PACE.seconds(64)
    live = {request.request_id: request for request in world.scheduler.live_requests()}

    def cost(request_id: str) -> float:
        request = live[request_id]
        tokens = world.traffic.lengths[request_id] - request.num_output_tokens
        return tokens * steps + (request.num_tokens - request.num_computed_tokens) * PACE.per_prompt_token

    shortest = sorted(there, key=cost)

    def ends_in_time(count: int) -> bool:
        alone = copy.deepcopy(world)
        alone.core.abort(shortest[count:])
        deadline = alone.device.now + seconds
        while alone.core.has_work() and alone.device.now < deadline:
            alone.step()
        return not alone.core.has_work()

    low, high = 0, len(shortest)  # `low` of them end in time
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if ends_in_time(middle) else (low, middle - 1)
    return frozenset(shortest[:low])
