"""When the engine's loop feeds systemd's watchdog."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.engine.liveness import Liveness
from appliance.lifecycle.sd_notify import ServiceManager
from appliance.protocol.wire import SchedulerStats


@dataclass
class Engine:
    """A core, the manager that hears of it, and the clock."""

    busy: bool = False
    steps: int = 0
    now: float = 0.0
    fed: int = 0
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        engine = self

        class Manager(ServiceManager):
            def watchdog(self) -> None:
                engine.fed += 1

            def status(self, status: str) -> None:
                engine.said.append(status)

        self.liveness = Liveness(Manager("/run/notify", watchdog_seconds=40.0), clock=lambda: self.now)

    def has_work(self) -> bool:
        return self.busy

    def stats(self) -> SchedulerStats:
        return SchedulerStats(num_running=int(self.busy), steps=self.steps, kv_cache_usage=0.25)

    def turn(self, seconds: float) -> None:
        self.now += seconds
        self.liveness.turned(self)


def test_an_idle_loop_wakes_four_times_per_watchdog_and_feeds_it() -> None:
    engine = Engine()
    assert engine.liveness.interval == 10
    for _ in range(4):
        engine.turn(10)
    assert engine.fed == 4


def test_a_loop_whose_steps_move_feeds_it_no_more_often_than_needed() -> None:
    engine = Engine(busy=True)
    for _ in range(1500):
        engine.steps += 1
        engine.turn(0.01)
    assert engine.fed == 2  # at once, and after ten seconds


def test_a_loop_that_turns_with_work_but_without_steps_starves_it() -> None:
    engine = Engine(busy=True, steps=7)
    engine.turn(10)
    for _ in range(10):
        engine.turn(10)
    assert engine.fed == 1
    engine.steps += 1
    engine.turn(0.01)
    assert engine.fed == 2


def test_the_status_tells_the_load() -> None:
    engine = Engine()
    engine.turn(10)
    engine.busy, engine.steps = True, 12
    engine.turn(10)
    assert engine.said == ["Ready, idle", "Ready: 1 running, 0 waiting, KV cache 25% in use, 12 steps so far"]


def test_nobody_waits_when_there_is_no_manager() -> None:
    assert Liveness(ServiceManager()).interval is None
