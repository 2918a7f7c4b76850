"""The comparison against noise that we made ourselves: false verdicts, coverage, width.

Visits of three requests are simulated on a machine of three kinds (quiet, ordinary, noisy): lognormal
latencies, autocorrelated speed of the machine, drift over the run, a periodic disturbance and rare
stalls that no arm has an influence on. Each run goes the way of a real one: ``design`` draws the order,
``compare_arms`` judges. Asked, of 2,000 runs each:

*Type I error*: how often is a difference named between two equal arms? 3.5-6.5 %.
*Coverage*: how often does the 95 % interval hold the true ratio of an arm 20 % faster? 93.5-96.5 %.

The limits are judged at 24 pairs, where METHOD begins to aim; 8, 12 and 40 pairs are shown beside it.
A fourth machine shows a known limit and is not judged: a strong disturbance that comes back every three to
six visits, about once per block, pushes both pairs of a block the same way, and the drawn order of the
block no longer makes them independent.

Run: ``python tests/benchmarks/bench_compare.py`` (half a minute of one core). Writes
``tests/benchmarks/results/compare.json``.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ollamalab import host
from ollamalab.compare import LEAST_PAIRS, Metric, blocks_for_pairs, compare_arms, design
from ollamalab.metrics import Share, wilson_share

RESULTS = Path(__file__).parent / "results" / "compare.json"
SEED = 20_240_611
REPETITIONS = 2_000
PAIRS = (LEAST_PAIRS, 12, 24, 40)
JUDGED_PAIRS = 24
EFFECT = 0.8
REQUESTS_PER_VISIT = 3
TYPE_I_LIMITS = (0.035, 0.065)
COVERAGE_LIMITS = (0.935, 0.965)
LATENCY = Metric(name="latency_s", unit="s", better="lower")


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A machine; spreads are standard deviations of log latency."""

    name: str
    request_sd: float  #: between requests
    machine_sd: float  #: of the machine's speed between visits
    machine_memory: float  #: correlation of that speed from visit to visit
    drift: float  #: largest change over a whole run, up or down
    wave: float  #: largest amplitude of a periodic disturbance
    stall_ratio: float  #: share of requests that stall
    stall: float  #: longest stall, in typical latencies
    period: tuple[float, float] = (2.0, 40.0)  #: of the disturbance, in visits: least and most
    is_judged: bool = True


NOISES = (
    Noise(
        name="quiet",
        request_sd=0.02,
        machine_sd=0.01,
        machine_memory=0.5,
        drift=0.02,
        wave=0.01,
        stall_ratio=0.002,
        stall=1.0,
    ),
    Noise(
        name="ordinary",
        request_sd=0.08,
        machine_sd=0.05,
        machine_memory=0.7,
        drift=0.10,
        wave=0.05,
        stall_ratio=0.01,
        stall=2.0,
    ),
    Noise(
        name="noisy",
        request_sd=0.20,
        machine_sd=0.12,
        machine_memory=0.8,
        drift=0.30,
        wave=0.10,
        stall_ratio=0.03,
        stall=3.0,
    ),
    Noise(
        name="beating",
        request_sd=0.08,
        machine_sd=0.05,
        machine_memory=0.7,
        drift=0.10,
        wave=0.30,
        stall_ratio=0.01,
        stall=2.0,
        period=(3.0, 6.0),
        is_judged=False,
    ),
)


def visit_means(noise: Noise, effects: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Return the mean latency of every visit of many runs.

    Args:
        noise: The machine.
        effects: Factor of the visited arm, shape (runs, visits).
        rng: Draws everything.
    """
    runs, visits = effects.shape
    at = np.arange(visits)
    speed = np.empty(effects.shape)
    fresh = np.sqrt(1 - noise.machine_memory**2)
    speed[:, 0] = rng.normal(size=runs)
    for visit in range(1, visits):
        speed[:, visit] = noise.machine_memory * speed[:, visit - 1] + fresh * rng.normal(size=runs)
    drift = rng.uniform(-noise.drift, noise.drift, (runs, 1)) * at / visits
    period = rng.uniform(*noise.period, (runs, 1))
    phase = rng.uniform(0, 2 * np.pi, (runs, 1))
    wave = rng.uniform(0, noise.wave, (runs, 1)) * np.sin(2 * np.pi * at / period + phase)
    machine = (noise.machine_sd * speed + drift + wave)[..., None]
    size = (runs, visits, REQUESTS_PER_VISIT)
    latency = effects[..., None] * np.exp(machine + noise.request_sd * rng.normal(size=size))
    stalled = rng.random(size) < noise.stall_ratio
    means: NDArray[Any] = (latency + stalled * rng.uniform(0.2, 1.0, size) * noise.stall).mean(axis=2)
    return means


def true_ratio(noise: Noise, effect: float, rng: np.random.Generator) -> float:
    """Return what the estimate aims at: the pseudo-median of log ratios, from 400,000 independent pairs.

    It is the effect itself but for the stalls, which do not shrink with it.
    """
    effects = np.tile([effect, 1.0], (400_000, 1))
    means = visit_means(noise, effects, rng)
    # One visit further in the same run; random order makes the two of a pair exchange places.
    ratios = np.log(means[:, 0] / means[:, 1])
    other = visit_means(noise, effects[:, ::-1], rng)
    ratios[::2] = np.log(other[::2, 1] / other[::2, 0])
    return float(np.exp(np.median((ratios + rng.permutation(ratios)) / 2)))


def trial(noise: Noise, pairs: int, effect: float, truth: float, rng: np.random.Generator) -> dict[str, Any]:
    """Return what 2,000 runs of one kind show."""
    draws = random.Random(int(rng.integers(2**32)))
    plans = [design(("off", "on"), blocks_for_pairs(pairs, 2), draws) for _ in range(REPETITIONS)]
    effects = np.array([[effect if visit.arm == "on" else 1.0 for visit in plan] for plan in plans])
    means = visit_means(noise, effects, rng)
    named = covered = equivalent = 0
    widths = []
    for plan, row in zip(plans, means, strict=True):
        values = dict(zip(plan, map(float, row), strict=True))
        found = compare_arms(values, LATENCY, arm="on", baseline="off")
        assert found.verdict is not None
        assert found.low is not None
        assert found.high is not None
        named += found.verdict.direction is not None
        equivalent += found.verdict.is_equivalent
        covered += found.low <= truth <= found.high
        widths.append((found.high / found.low) ** 0.5 - 1)
    return {
        "noise": noise.name,
        "pairs": pairs,
        "effect": effect,
        "true_ratio": truth,
        "named": asdict(wilson_share(named, REPETITIONS)),
        "covered": asdict(wilson_share(covered, REPETITIONS)),
        "equivalent_ratio": equivalent / REPETITIONS,
        "median_half_width_ratio": float(np.median(widths)),
    }


def main() -> int:
    """Run every trial, print the table, write the file; 1 if a limit is not kept."""
    rng = np.random.default_rng(SEED)
    started_s = time.perf_counter()
    trials: list[dict[str, Any]] = []
    print(f"{REPETITIONS} runs each; 95 % Wilson intervals\n")
    print(
        "noise     pairs  type I error          coverage at 0.8        power  half-width  equal within 10 %"
    )
    is_kept = True
    for noise in NOISES:
        truth = true_ratio(noise, EFFECT, rng)
        for pairs in PAIRS:
            null = trial(noise, pairs, 1.0, 1.0, rng)
            shifted = trial(noise, pairs, EFFECT, truth, rng)
            trials += [null, shifted]
            type_i, coverage = Share(**null["named"]), Share(**shifted["covered"])
            within = _within(type_i, TYPE_I_LIMITS) and _within(coverage, COVERAGE_LIMITS)
            if noise.is_judged and pairs == JUDGED_PAIRS:
                is_kept &= within
            print(
                f"{noise.name:9} {pairs:5}  {_shown(type_i)}  {_shown(coverage)}  "
                f"{shifted['named']['ratio']:6.1%}  {null['median_half_width_ratio']:9.1%}  "
                f"{null['equivalent_ratio']:17.1%}{'' if within else '  outside the limits'}"
            )
    machine = host.describe()
    result = {
        "benchmark": "compare",
        "seed": SEED,
        "repetitions": REPETITIONS,
        "requests_per_visit": REQUESTS_PER_VISIT,
        "limits": {"type_i": TYPE_I_LIMITS, "coverage": COVERAGE_LIMITS, "judged_pairs": JUDGED_PAIRS},
        "limits_kept": is_kept,
        "noises": [asdict(noise) for noise in NOISES],
        "trials": trials,
        "seconds": time.perf_counter() - started_s,
        "load_average": os.getloadavg(),
        "machine": machine,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nlimits at {JUDGED_PAIRS} pairs {'kept' if is_kept else 'NOT kept'}; written to {RESULTS.name}")
    return 0 if is_kept else 1


def _within(share: Share, limits: tuple[float, float]) -> bool:
    return share.ratio is not None and limits[0] <= share.ratio <= limits[1]


def _shown(share: Share) -> str:
    return f"{share.ratio:5.1%} ({share.low:5.1%}–{share.high:5.1%})"


if __name__ == "__main__":
    sys.exit(main())
