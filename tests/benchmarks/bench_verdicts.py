"""The whole path from arms to verdict, on a real server whose times we planted.

A scripted server takes milliseconds for a request, times the noise of the *ordinary* machine of
``bench_compare``: lognormal, autocorrelated, with drift, a disturbance and stalls. Everything else is what a
notebook uses: ``Subject``, its load generator and connection, blocks in drawn order, ``contrast``, and the
correction over a run's tests. One comparison is 24 pairs of visits; 100 comparisons for each planted effect.

Asked: how often a difference is named where none was planted (at most 10); how often 20 % more or less is
named with the right direction (at least 95), and how often the 95 % interval holds what was planted (at
least 90). The client's own half millisecond is in every visit and draws ratios towards 1 by about 1 %.

Run: ``python tests/benchmarks/bench_verdicts.py [--repetitions 100]`` (about five minutes). Writes
``tests/benchmarks/results/verdicts.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bench_compare import NOISES, true_ratio, visit_means

from ollamalab import host
from ollamalab.compare import Comparison, Metric, Visit, blocks_for_pairs, correct, design
from ollamalab.connection import new_event_loop
from ollamalab.hosts import open_target
from ollamalab.lab.subject import ONE_REQUEST, PromptShape, Subject
from ollamalab.lab.trials import Visitor, mean_of, run_visits
from ollamalab.metrics import e2e_final_line_s
from ollamalab.records import RequestRecord
from ollamalab.scripted import Script, ScriptedServer

RESULTS = Path(__file__).parent / "results" / "verdicts.json"
SEED = 20_261_121
PAIRS = 24
REQUEST_S = 0.02
ARMS = ("as before", "changed")
EFFECTS = (1.0, 1.2, 1 / 1.2)
MOST_FALSE, LEAST_RIGHT, LEAST_COVERED = 0.10, 0.95, 0.90
NOISE = next(noise for noise in NOISES if noise.name == "ordinary")
E2E = Metric(name="e2e_s", unit="s", better="lower")


async def compared(server: ScriptedServer, subject: Subject, effect: float, seed: int) -> Comparison:
    """Return one comparison of two arms, of which the second takes ``effect`` times as long."""
    visits = design(ARMS, blocks_for_pairs(PAIRS, len(ARMS)), random.Random(seed))
    effects = np.array([[effect if visit.arm == ARMS[1] else 1.0 for visit in visits]])
    planted = REQUEST_S * visit_means(NOISE, effects, np.random.default_rng(seed))[0]
    asked = subject.loads(ONE_REQUEST, PromptShape(prompt_tokens=8, num_predict=1))

    def visitor() -> Visitor:
        async def visit(visit: Visit) -> Sequence[RequestRecord]:
            server.script = replace(server.script, first_s=float(planted[visit.index]))
            return list(await asked(visit))

        return visit

    trials = await run_visits({arm: visitor() for arm in ARMS}, visits)
    found = trials.contrast(E2E, mean_of(e2e_final_line_s), arm=ARMS[1], is_primary=True)
    return correct([found])[0]


def summed_up(effect: float, true: float, found: Sequence[Comparison]) -> dict[str, Any]:
    """Return how often the verdicts were right."""
    directions = [comparison.verdict.direction for comparison in found if comparison.verdict is not None]
    expected = "higher" if effect > 1 else "lower"
    covered = sum(
        comparison.low is not None
        and comparison.high is not None
        and comparison.low <= true <= comparison.high
        for comparison in found
    )
    named = sum(direction is not None for direction in directions)
    right = sum(direction == expected for direction in directions)
    is_null = effect == 1.0
    return {
        "effect": effect,
        "true_ratio": true,
        "comparisons": len(found),
        "pairs": [
            min(comparison.pairs for comparison in found),
            max(comparison.pairs for comparison in found),
        ],
        "named": named,
        "right_direction": None if is_null else right,
        "covered": covered,
        "median_estimate": float(np.median([comparison.estimate or np.nan for comparison in found])),
        "kept": named <= MOST_FALSE * len(found)
        if is_null
        else right >= LEAST_RIGHT * len(found) and covered >= LEAST_COVERED * len(found),
    }


async def measured(repetitions: int) -> list[dict[str, Any]]:
    """Return a row per effect; their comparisons take turns."""
    script = Script(first_s=REQUEST_S, gap_s=0.0, tokens=1)
    found: dict[float, list[Comparison]] = {effect: [] for effect in EFFECTS}
    async with (
        ScriptedServer(script) as server,
        open_target(server.url) as target,
        Subject(target, script.models[0], seed=SEED) as subject,
    ):
        for repetition in range(repetitions):
            for number, effect in enumerate(EFFECTS):
                seed = SEED + len(EFFECTS) * repetition + number
                found[effect].append(await compared(server, subject, effect, seed))
    rng = np.random.default_rng(SEED)
    return [summed_up(effect, true_ratio(NOISE, effect, rng), found[effect]) for effect in EFFECTS]


def main() -> int:
    """Run everything, print the rows, write the results; 1 if a limit is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=100, help="comparisons per planted effect")
    repetitions = parser.parse_args().repetitions
    load_before, begun_s = os.getloadavg(), time.monotonic()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        rows = runner.run(measured(repetitions))
    for row in rows:
        print(
            f"planted {row['effect']:.3f}: named {row['named']} of {row['comparisons']}, right direction "
            f"{row['right_direction']}, covered {row['covered']}, median estimate "
            f"{row['median_estimate']:.3f}, {'kept' if row['kept'] else 'MISSED'}"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    content = {
        "benchmark": "verdicts",
        "machine": host.describe(),
        "load_average_before": load_before,
        "load_average_after": os.getloadavg(),
        "seconds": time.monotonic() - begun_s,
        "seed": SEED,
        "pairs": PAIRS,
        "request_s": REQUEST_S,
        "noise": NOISE.name,
        "limits": {"most_false": MOST_FALSE, "least_right": LEAST_RIGHT, "least_covered": LEAST_COVERED},
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 0 if all(row["kept"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
