"""How often a release that is as good as the live agent is rolled back all the same, and how soon one that is worse is.

Simulated releases go through the controller's own tests, looked at after every session, beside a z-test at every unit and at every
hundredth, thresholds as Flagger has them (five checks of a hundred units that fail) and mSPRT, on the same sessions. Rewards are 0, .5 or
1 with a mean of .6. A unit is a session of either arm: a pair. `ratio` is alpha over the rate of false rollbacks seen, in the worst of the
scenarios; where none was seen it counts as one.

    python bench/canary.py [--runs 2000]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent_rft.contracts.agents import Arm
from agent_rft.contracts.releases import Policy, Session
from agent_rft.release.betting import Bet
from agent_rft.release.tests import Tests, new_tests

Table = NDArray[np.float64]
Rule = Callable[[Table, Table], NDArray[np.int64]]
"""Rewards of candidate and live, a row a release, to the unit at which each is rolled back; one more than there are: never."""

ALPHA = 0.05
MEAN, HALF = 0.6, 0.2
"""The mean of all rewards, and the share of those that are .5."""
UNITS, LONGEST = 800, 5000
"""Of a release without a difference, and of one with."""
LONG_RUNS = 300
"""Without a difference, and as long as one with: thresholds take their time to go wrong."""
DETECTED = {0.05: 150, 0.10: 300, 0.20: 600}
"""Releases by their drop."""
Z = 1.645
WINDOW, BELOW, CHECKS = 100, 0.05, 5
MIXING = 0.01
"""mSPRT's variance of the differences that it expects."""
TURNS = 10
SHARES = (0.01, 0.05, 0.25, 0.5, 0.75)
AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
ALL_ON_REWARD = Policy(alpha=ALPHA, spent_on={"reward": 1.0}, shadow_sessions=0)
"""As the others look at one figure only."""


def session(arm: Arm, reward: float) -> Session:
    return Session(arm=arm, session="", closed_at=AT, turns=1, reward=reward)


def draw(luck: np.random.Generator, means: float | Table, shape: tuple[int, int]) -> Table:
    uniform = luck.random(shape)
    ones = np.asarray(means) - HALF / 2
    return np.where(uniform < ones, 1.0, np.where(uniform < ones + HALF, 0.5, 0.0))


# --- rules ------------------------------------------------------------------------------------------------------------------


def ours(candidate: Table, live: Table, policy: Policy = ALL_ON_REWARD) -> NDArray[np.int64]:
    return np.array([_unit_of_rollback(new_tests(policy), mine, theirs) for mine, theirs in zip(candidate, live, strict=True)])


def _unit_of_rollback(tests: Tests, candidate: Table, live: Table) -> int:
    for unit, (mine, theirs) in enumerate(zip(candidate.tolist(), live.tolist(), strict=True), 1):
        for arm, reward in (("live", theirs), ("candidate", mine)):
            tests.take(session(arm, reward))
            if tests.rejected():
                return unit
    return len(candidate) + 1


def first(found: NDArray[np.bool_], units: Sequence[int], never: int) -> NDArray[np.int64]:
    return np.where(found.any(1), np.array(units)[found.argmax(1)], never)


def moments(candidate: Table, live: Table) -> tuple[Table, Table, Table]:
    """After every unit: its number, the difference of the means, and the sum of the variances."""
    number = np.arange(1, candidate.shape[1] + 1, dtype=float)
    means = [np.cumsum(one, 1) / number for one in (candidate, live)]
    squares = [np.cumsum(one**2, 1) / number for one in (candidate, live)]
    return number, means[0] - means[1], np.maximum(sum(s - m**2 for s, m in zip(squares, means, strict=True)), 1e-9)


def z_test(every: int) -> Rule:
    def rule(candidate: Table, live: Table) -> NDArray[np.int64]:
        number, difference, variance = moments(candidate, live)
        looks = np.arange(100, len(number) + 1, every)
        worse = (difference / np.sqrt(variance / number) < -Z)[:, looks - 1]
        return first(worse, looks.tolist(), len(number) + 1)

    return rule


def thresholds(candidate: Table, live: Table) -> NDArray[np.int64]:
    releases, units = candidate.shape
    checks = units // WINDOW
    means = [one[:, : checks * WINDOW].reshape(releases, checks, WINDOW).mean(2) for one in (candidate, live)]
    failed = (means[0] < means[1] - BELOW).cumsum(1) >= CHECKS
    return first(failed, [WINDOW * (check + 1) for check in range(checks)], units + 1)


def msprt(candidate: Table, live: Table) -> NDArray[np.int64]:
    number, difference, variance = moments(candidate, live)
    spread = variance + number * MIXING
    ratio = 0.5 * np.log(variance / spread) + number**2 * MIXING * difference**2 / (2 * variance * spread)
    found = (ratio >= -np.log(2 * ALPHA)) & (difference < 0) & (number >= 50)
    return first(found, list(range(1, len(number) + 1)), len(number) + 1)


RULES: dict[str, Rule] = {
    "betting e-process (ours)": ours,
    "z-test at every unit": z_test(1),
    "z-test every 100 units": z_test(100),
    "thresholds, Flagger-like": thresholds,
    "mSPRT": msprt,
}

# --- no difference ----------------------------------------------------------------------------------------------------------


def independent(luck: np.random.Generator, runs: int) -> tuple[Table, Table]:
    return draw(luck, MEAN, (runs, UNITS)), draw(luck, MEAN, (runs, UNITS))


def turns_of(luck: np.random.Generator, runs: int, sessions: int) -> Table:
    """Ten turns a session, alike among themselves: some sessions are easy, some hard."""
    easy = np.clip(MEAN + luck.normal(0, 0.25, (runs, sessions)), HALF / 2, 1 - HALF / 2)
    return draw(luck, np.repeat(easy, TURNS, axis=1), (runs, sessions * TURNS))


def correlated(luck: np.random.Generator, runs: int) -> tuple[Table, Table]:
    """A session's reward is the mean of its turns'."""
    return tuple(turns_of(luck, runs, UNITS).reshape(runs, UNITS, TURNS).mean(2) for _ in range(2))


def shock(luck: np.random.Generator, runs: int) -> tuple[Table, Table]:
    """Half way through both arms lose .2, for good."""
    means = np.where(np.arange(UNITS) < UNITS // 2, MEAN, MEAN - 0.2)[None, :]
    return draw(luck, means, (runs, UNITS)), draw(luck, means, (runs, UNITS))


SCENARIOS = {"independent": independent, "correlated inside": correlated, "shock to both": shock}


def rate(units: NDArray[np.int64], longest: int) -> float:
    return float((units <= longest).mean())


def false_rollbacks(luck: np.random.Generator, runs: int) -> dict[str, dict[str, float]]:
    seen: dict[str, dict[str, float]] = {name: {} for name in RULES}
    for scenario, drawn in SCENARIOS.items():
        candidate, live = drawn(luck, runs)
        for name, rule in RULES.items():
            seen[name][scenario] = rate(rule(candidate, live), UNITS)
    return seen


def in_the_long_run(luck: np.random.Generator, runs: int) -> dict[str, float]:
    """The same after many more units. Ours is the bare bet here: to take each session in would take minutes."""
    candidate, live = draw(luck, MEAN, (runs, LONGEST)), draw(luck, MEAN, (runs, LONGEST))
    peers = {name: rate(rule(candidate, live), LONGEST) for name, rule in RULES.items() if rule is not ours}
    return {next(iter(RULES)): _below_a_floor((candidate - live + 1) / 2, 0.5), **peers}


def whole_policy(runs: int, units: int) -> float:
    """The policy as it ships: six figures and a shadow before. Violations come exactly as often as is borne."""
    luck, policy, wrong = random.Random(11), Policy(), 0
    for _ in range(runs):
        tests = new_tests(policy)
        wrong += any(_rolled_back(tests, luck, policy, shadow) for shadow in [True] * policy.shadow_sessions + [False] * units)
    return wrong / runs


def _rolled_back(tests: Tests, luck: random.Random, policy: Policy, shadow: bool) -> bool:
    for arm in ("live", "candidate"):
        reward = luck.choices((0.0, 0.5, 1.0), (0.3, 0.2, 0.5))[0]
        happened = [float(luck.random() < chance) for chance in (0.01, 0.02, 0.03, policy.unsafe_cap)]
        errors, tool_failures, slow, unsafe = happened
        holdout = reward if luck.random() < 0.8 else luck.choices((0.0, 1.0), (0.4, 0.6))[0]
        tests.take(
            Session(
                arm=arm, session="", closed_at=AT, turns=1, shadow=shadow, reward=reward, holdout=holdout,
                errors=errors, tool_failures=tool_failures, slow=slow, unsafe=unsafe,
            )
        )  # fmt: skip
    return tests.rejected() is not None


def done_wrong(luck: np.random.Generator, runs: int) -> dict[str, float]:
    """The same bets against the rules: turns as units, and a fixed floor instead of a pair."""
    turns = [turns_of(luck, runs, UNITS // TURNS) for _ in range(2)]
    candidate, _ = shock(luck, runs)
    return {"turns counted as units": rate(ours(*turns), UNITS), "a fixed floor of .55, shock to both": _below_a_floor(candidate, 0.55)}


def _below_a_floor(rewards: Table, floor: float) -> float:
    return sum(_first_refusal(Bet(m=floor), release) <= len(release) for release in rewards.tolist()) / len(rewards)


# --- a difference -----------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    rate: float
    median: float
    tenth: float
    """The slowest tenth."""


def found(units: Iterable[int], longest: int) -> Found:
    every = list(units)
    hits = [unit for unit in every if unit <= longest]
    middle, tenth = (float(np.quantile(hits, q)) if hits else float("nan") for q in (0.5, 0.9))
    return Found(len(hits) / len(every), middle, tenth)


def detection(luck: np.random.Generator, scale: float) -> dict[str, dict[float, Found]]:
    seen: dict[str, dict[float, Found]] = {name: {} for name in [*RULES, "betting, alpha .01"]}
    for drop, runs in DETECTED.items():
        shape = (max(20, int(runs * scale)), LONGEST)
        candidate, live = draw(luck, MEAN - drop, shape), draw(luck, MEAN, shape)
        for name, rule in RULES.items():
            seen[name][drop] = found(rule(candidate, live).tolist(), LONGEST)
        strict = Policy(alpha=0.01, spent_on={"reward": 1.0}, shadow_sessions=0)
        seen["betting, alpha .01"][drop] = found(ours(candidate, live, strict).tolist(), LONGEST)
    return seen


def by_share(runs: int) -> dict[float, tuple[float, float]]:
    """Until a drop of .10 is found: the candidate's sessions, and all, where a share of the sessions is the candidate's."""
    luck, seen = random.Random(13), dict[float, tuple[float, float]]()
    for share in SHARES:
        counts = [_until_found(luck, share) for _ in range(runs)]
        seen[share] = statistics.median(mine for mine, _ in counts), statistics.median(every for _, every in counts)
    return seen


def _until_found(luck: random.Random, share: float) -> tuple[int, int]:
    tests, every, mine = new_tests(ALL_ON_REWARD), 0, 0
    while not tests.rejected():
        is_candidate = luck.random() < share
        ones = MEAN - HALF / 2 - (0.1 if is_candidate else 0.0)
        uniform = luck.random()
        reward = 1.0 if uniform < ones else 0.5 if uniform < ones + HALF else 0.0
        tests.take(session("candidate" if is_candidate else "live", reward))
        every, mine = every + 1, mine + is_candidate
    return mine, every


def caps(runs: int) -> dict[float, Found]:
    """Violations: .5% are borne, alpha .01. By their true rate."""
    luck, seen = random.Random(17), dict[float, Found]()
    policy = Policy(alpha=0.01, spent_on={"unsafe": 1.0}, shadow_sessions=0)
    for true in (0.005, 0.02, 0.05):
        units: list[int] = []
        for _ in range(runs):
            bet, longest = new_tests(policy).canary[-1], 2000
            units.append(next((n for n in range(1, longest + 1) if _violates(bet, float(luck.random() < true))), longest + 1))
        seen[true] = found(units, 2000)
    return seen


def _violates(test, unsafe: float) -> bool:  # noqa: ANN001
    test.take("candidate", unsafe)
    return test.rejected


def promotion(luck: np.random.Generator, runs: int) -> dict[float, Found]:
    """Until a candidate that is as good is shown to be no worse by a margin, alpha .05."""
    candidate, live = draw(luck, MEAN, (runs, LONGEST)), draw(luck, MEAN, (runs, LONGEST))
    outcomes = ((live - candidate + 1) / 2).tolist()
    return {margin: found((_first_refusal(Bet(m=(1 + margin) / 2), one) for one in outcomes), LONGEST) for margin in (0.05, 0.1, 0.2)}


def _first_refusal(bet: Bet, outcomes: Sequence[float]) -> int:
    for unit, outcome in enumerate(outcomes, 1):
        bet.update(outcome)
        if bet.rejects(ALPHA):
            return unit
    return len(outcomes) + 1


# --- said -------------------------------------------------------------------------------------------------------------------


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=2000)
    runs, luck = options.parse_args().runs, np.random.default_rng(7)
    began = time.process_time()
    print(f"{runs:,} releases without a difference, {UNITS:,} units each, alpha {ALPHA}: the rate of false rollbacks")
    print(f"  {'':26}" + "".join(f"{name:>20}" for name in SCENARIOS))
    wrong = false_rollbacks(luck, runs)
    for name, rates in wrong.items():
        print(f"  {name:26}" + "".join(f"{rates[scenario]:20.4f}" for scenario in SCENARIOS), flush=True)
    long_run = in_the_long_run(luck, max(20, int(LONG_RUNS * runs / 2000)))
    print(f"  independent, after {LONGEST:,} units: {', '.join(f'{name} {seen:.3f}' for name, seen in long_run.items())}", flush=True)
    shipped = whole_policy(runs, UNITS // 4)
    print(f"  the policy as it ships, six figures and a shadow, {UNITS // 4} units: {shipped:.4f}", flush=True)
    against = done_wrong(luck, max(20, runs // 10))
    for what, seen in against.items():
        print(f"  against the rules, {what}: {seen:.3f}")
    print(f"\nunits until a drop is found, at the median (the slowest tenth; found within {LONGEST:,})")
    print(f"  {'':26}" + "".join(f"{f'-{drop:.2f}':>24}" for drop in DETECTED))
    detected = detection(luck, runs / 2000)
    for name, by_drop in detected.items():
        print(f"  {name:26}" + "".join(f"{f'{one.median:.0f} ({one.tenth:.0f}; {one.rate:.0%})':>24}" for one in by_drop.values()))
    for margin, one in promotion(luck, max(20, runs // 20)).items():
        print(
            f"  a candidate as good is shown to be at most {margin:.2f} worse after {one.median:.0f} ({one.tenth:.0f}; {one.rate:.0%})",
            flush=True,
        )
    shares = by_share(max(10, runs // 40))
    print("\na drop of .10 by the candidate's share, alpha .05: its sessions until it is found, and all sessions, at the median")
    print("\n".join(f"  {share:6.0%}{mine:10.0f}{every:10.0f}" for share, (mine, every) in shares.items()), flush=True)
    capped = caps(max(20, runs // 10))
    print("\nsafety violations, .5% are borne, alpha .01: by their true rate, rolled back within 2,000 sessions, and after how many")
    print("\n".join(f"  {true:6.1%}{one.rate:10.3f}{one.median:10.0f}" for true, one in capped.items()))
    mine = {**wrong["betting e-process (ours)"], "policy as it ships": shipped}
    worst = max(mine.values())
    ratio = ALPHA / max(worst, 1 / runs)
    if ratio < 1:
        print(f"\nMORE THAN ALPHA: {mine}")
    print()
    print(json.dumps(_line(runs, ratio, mine, wrong, detected, time.process_time() - began)))


def _line(
    runs: int,
    ratio: float,
    mine: dict[str, float],
    wrong: dict[str, dict[str, float]],
    detected: dict[str, dict[float, Found]],
    seconds: float,
) -> dict[str, object]:
    return {
        "bench": "canary",
        "peer": "alpha; z-tests, Flagger-like thresholds, mSPRT in the same run",
        "ratio": round(ratio, 2),
        "unit": "alpha over the rate of false rollbacks seen, worst scenario; none seen counts as one",
        "conditions": {
            "releases": runs,
            "units": UNITS,
            "alpha": ALPHA,
            "false_rollbacks": mine,
            "peers_independent": {name: rates["independent"] for name, rates in wrong.items()},
            "median_units_to_detect": {name: {f"-{drop}": one.median for drop, one in by.items()} for name, by in detected.items()},
            "cpu_seconds": round(seconds),
            "cpus": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
        },
    }


if __name__ == "__main__":
    main()
