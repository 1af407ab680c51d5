"""What becomes of the requests of a machine that has to end, under three policies, in simulated time.

    PYTHONPATH=. python tests/benchmarks/drain.py

Prints the table of docs/drain.md: sums over a few runs of each scenario of tests/support/drain_simulation.py.
"""

from __future__ import annotations

from tests.support.drain_simulation import NOTICE_SECONDS, SCENARIOS, Outcome, at_notice, could_finish, run

SEEDS = (1, 2, 3, 4)
POLICIES = {"drain": "pagebox", "wait": "wait for all until killed", "abort": "abort at once"}


def main() -> None:
    print("| load | policy | could finish | of these finished | finished in all | told | cut off | told after |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for scenario in SCENARIOS:
        worlds = [at_notice(scenario, seed) for seed in SEEDS]
        oracle = [could_finish(world, NOTICE_SECONDS) for world in worlds]
        for policy, name in POLICIES.items():
            outcomes = [run(world, policy, NOTICE_SECONDS) for world in worlds]
            could = sum(map(len, oracle))
            of_these = sum(len(could & outcome.finished) for could, outcome in zip(oracle, outcomes, strict=True))
            print(f"| {scenario.name} | {name} | {could} | {of_these / could:.1%} |", _row(outcomes))


def _row(outcomes: list[Outcome]) -> str:
    finished, told, cut_off = (
        sum(len(part) for part in parts)
        for parts in (
            [outcome.finished for outcome in outcomes],
            [outcome.told for outcome in outcomes],
            [outcome.cut_off for outcome in outcomes],
        )
    )
    seconds = sum(outcome.seconds_until_told * (len(outcome.told) + len(outcome.cut_off)) for outcome in outcomes)
    return f"{finished} | {told} | {cut_off} | {seconds / max(1, told + cut_off):.0f} s |"


if __name__ == "__main__":
    main()
