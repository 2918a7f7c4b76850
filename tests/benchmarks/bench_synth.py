"""Synthetic models are written as fast as the disk takes them, in bounded memory.

The baseline writes bytes that are ready and syncs; the arms draw and write a model of about 0.5 GB in
each element type. Visits in randomised blocks; a value is MB/s until the file is on the disk.

Run: ``python tests/benchmarks/bench_synth.py [FOLDER]`` (half a minute; FOLDER chooses the disk). Writes
``tests/benchmarks/results/synth.json``.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import tempfile
import time
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ollamalab import host
from ollamalab.compare import Comparison, Metric, Visit, compare_arms, design
from ollamalab.embedded.fetch import ensure_model
from ollamalab.embedded.models import DEFAULT_MODEL, ModelStore
from ollamalab.embedded.random_weights import QUANTS
from ollamalab.embedded.shapes import SHAPES
from ollamalab.embedded.synth import Recipe, write_synthetic

RESULTS = Path(__file__).parent / "results" / "synth.json"
PLAIN = "ready bytes"
PIECE = os.urandom(16 * 2**20)
FILE_BYTES = 5e8
BLOCKS = 8
SPEED = Metric(name="MB/s", unit="MB/s", better="higher")


def recipe(quant: str) -> Recipe:
    """Return a narrow shape with as many layers as fill a file: files of all types are of one size."""
    narrow = replace(SHAPES["7b"], width=1024, feed_forward=5632, heads=16, vocabulary=65_536)
    for layers in count(1):
        found = Recipe(shape=replace(narrow, layers=layers), quant=quant)
        if sum(row.size_bytes for row in found.rows()) >= FILE_BYTES:
            return found
    raise AssertionError


def write_ready_bytes(path: Path) -> float:
    """Write and sync bytes that need no work; return MB/s."""
    begun_s = time.perf_counter()
    pieces = round(FILE_BYTES / len(PIECE))
    with path.open("wb") as file:
        for _ in range(pieces):
            file.write(PIECE)
        file.flush()
        os.fsync(file.fileno())
    return pieces * len(PIECE) / 1e6 / (time.perf_counter() - begun_s)


def main() -> None:
    """Measure, print the table, write the results."""
    tokenizer = ensure_model(DEFAULT_MODEL, ModelStore()).path
    load_before = os.getloadavg()
    values: dict[Visit, float | None] = {}
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        path = Path(folder) / "model.gguf"
        for visit in design((PLAIN, *QUANTS), BLOCKS, random.Random(1)):
            if visit.arm == PLAIN:
                values[visit] = write_ready_bytes(path)
            else:
                written = write_synthetic(recipe(visit.arm), path, tokenizer=tokenizer)
                values[visit] = written.bytes_per_s / 1e6
            path.unlink()
    compared = [compare_arms(values, SPEED, arm=quant, baseline=PLAIN) for quant in QUANTS]
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Console().print(_table(compared))
    Console().print(f"peak memory of the process: {peak_bytes / 1e6:.0f} MB")
    found = {
        "benchmark": "synth",
        "machine": host.describe(),
        "load_average_before": load_before,
        "load_average_after": os.getloadavg(),
        "file_bytes": FILE_BYTES,
        "peak_memory_bytes": peak_bytes,
        "comparisons": [asdict(one) for one in compared],
    }
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def _table(compared: list[Comparison]) -> Table:
    table = Table("weights", "MB/s", PLAIN, "ratio", "95 % interval", "n", "verdict")
    for one in compared:
        assert one.estimate is not None
        table.add_row(
            one.arm,
            f"{one.arm_value:.0f}",
            f"{one.baseline_value:.0f}",
            f"{one.estimate:.2f}",
            f"{one.low:.2f}-{one.high:.2f}",
            str(one.pairs),
            one.verdict.text if one.verdict else one.reason,
        )
    return table


if __name__ == "__main__":
    main()
