"""What sampling 8 GPUs at 10 Hz costs: the part of it that is ours, and a real driver's where there is one.

NVML itself is a stand-in that answers at once, built of NVML's own structures, so that what is measured
is everything round the driver's calls: Python, ctypes, the beat, the thread. The limit is 0.5 % of one
core. Rows of a real driver are "not run" without one. The sampling runs for 20 s, three times each way in
turn: read on the sampling's own thread, and detached (in a thread that may hang).

Run: ``python tests/benchmarks/bench_gpu.py`` (2 minutes). Writes ``tests/benchmarks/results/gpu.json``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pynvml
from rich.console import Console
from rich.table import Table

from ollamalab import host
from ollamalab.errors import SamplerUnavailable
from ollamalab.gpu import Detached, GpuSampler, GpuSource, PrometheusSampler, describe_gpus
from ollamalab.gpu.prometheus import EXPOSED, read_page
from ollamalab.gpu.smi import FIELDS, read_row
from ollamalab.sampling import Sampling

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu_machine import DCGM_PAGE, MACHINE, SMI, page
from nvml_standin import ANSWERS

RESULTS = Path(__file__).parent / "results" / "gpu.json"
GPUS = 8
INTERVAL_S = 0.1
SECONDS = 20.0
TURNS = 3
LIMIT_RATIO = 0.005


class FastNvml:
    """NVML that answers at once, with as little Python as can be: its own cost is not the sampler's."""

    def __init__(self) -> None:
        for name in dir(pynvml):
            if name.startswith(("NVML", "nvmlMemory_v2")):
                setattr(self, name, getattr(pynvml, name))
        for name, answer in ANSWERS.items():
            setattr(self, name, lambda *_, _answer=answer, **__: _answer)
        # Two seconds of a ring that the driver fills every 50 ms, again and again.
        self._rings = [(pynvml.c_nvmlSample_t * 40)() for _ in range(60)]
        for number, ring in enumerate(self._rings):
            for place, sample in enumerate(ring):
                sample.timeStamp = 1 + number * 40 + place
                sample.sampleValue.uiVal = 50

    def nvmlInit(self) -> None:
        """Do nothing."""

    def nvmlShutdown(self) -> None:
        """Do nothing."""

    def nvmlDeviceGetCount(self) -> int:
        """Return how many there are."""
        return GPUS

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        """Return the index."""
        return index

    def nvmlDeviceGetClockInfo(self, _: int, kind: int) -> int:
        """Return megahertz."""
        return 1980 + kind

    def nvmlDeviceGetFieldValues(self, _: int, fields: list[tuple[int, int]]) -> Any:
        """Make an array and name its fields, as ``pynvml`` does; the driver would fill it."""
        values = (pynvml.c_nvmlFieldValue_t * len(fields))()
        for place, field in enumerate(fields):
            values[place].fieldId, values[place].scopeId = field
        return values

    def nvmlDeviceGetSamples(self, _: int, __: int, seen_us: int) -> tuple[int, Any]:
        """Return 40 new samples."""
        return pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, self._rings[seen_us // 40][:]


def sampled(opening: Callable[[], GpuSource]) -> dict[str, Any]:
    """Sample for a while; return what it cost."""
    source = opening()
    before_s, begun_s = time.process_time(), time.perf_counter()
    with Sampling([source], interval_s=INTERVAL_S) as sampling:
        time.sleep(SECONDS)
    elapsed_s = time.perf_counter() - begun_s
    cpu_s = time.process_time() - before_s
    source.close()
    statistics = sampling.statistics()
    moments = sorted({sample.at_s for sample in sampling.samples})
    # Where each round lay beside the beat, without the round of the end.
    drift_s = [abs(at_s - moments[0] - n * INTERVAL_S) for n, at_s in enumerate(moments[:-1])]
    return {
        "cpu_ratio": cpu_s / elapsed_s,
        "rounds": statistics.rounds,
        "missed": statistics.missed,
        "longest_ms": (statistics.longest_s or 0.0) * 1e3,
        "last_drift_ms": drift_s[-1] * 1e3 if statistics.missed == 0 else None,
        "notes": sampling.notes,
    }


def each_s(action: Callable[[], object], n: int) -> dict[str, float]:
    """Return median and 95 % interval (order statistics) of one call's CPU seconds."""
    seconds = []
    for _ in range(n):
        begun_s = time.thread_time()
        action()
        seconds.append(time.thread_time() - begun_s)
    seconds.sort()
    reach = 0.98 * n**0.5
    low, high = (seconds[round(n / 2 + sign * reach)] for sign in (-1, 1))
    return {"n": n, "median_s": seconds[n // 2], "low_s": low, "high_s": high}


def main() -> None:
    """Measure, print the table, write the results."""
    load_before = os.getloadavg()
    nvml = FastNvml()
    ways = {
        "on the sampling's thread": partial(GpuSampler, nvml),
        "detached": partial(Detached, partial(GpuSampler, nvml), name="NVML"),
    }
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            rows[name].append(sampled(way))
    try:
        with GpuSampler() as real:
            for _ in range(100):
                real.read()
                time.sleep(INTERVAL_S)
            driver: Any = {"costs_s": real.costs_s(), "notes": real.notes}
    except SamplerUnavailable as error:
        driver = f"not run: {error}"
    big_page = DCGM_PAGE * GPUS + "".join(f'go_thing_{n}{{a="b"}} {n}\n' for n in range(500))
    own_page = "".join(
        f'{EXPOSED[name][0]}{{gpu="gpu{n}",name="x"}} {value * EXPOSED[name][1]}\n'
        for n in range(GPUS)
        for name, value in MACHINE.items()
    )
    line = ", ".join(SMI[field] for field in FIELDS)
    with page(big_page) as url:
        now_s = [0.0]
        scraper = PrometheusSampler(url, clock=lambda: now_s[0])

        def scrape() -> None:
            now_s[0] += 1
            scraper.read()

        parts = {
            "one GPU's fast values": each_s(_one_gpu(nvml), 2000),
            "a line of nvidia-smi": each_s(lambda: read_row(line, FIELDS), 2000),
            "a page of DCGM's, 8 GPUs": each_s(lambda: read_page(big_page), 200),
            "a page of ours, 8 GPUs": each_s(lambda: read_page(own_page), 200),
            "a scrape of DCGM's page": each_s(scrape, 100),
        }
    console = Console(width=110)
    table = Table(title=f"{GPUS} GPUs at {1 / INTERVAL_S:g} Hz, stand-in driver", title_justify="left")
    for column in ("", "CPU of one core", "rounds", "missed", "longest round", "drift at the end"):
        table.add_column(column, justify="right" if column else "left")
    for name, turns in rows.items():
        for turn in turns:
            drift = "n/a" if turn["last_drift_ms"] is None else f"{turn['last_drift_ms']:.2f} ms"
            table.add_row(
                name,
                f"{turn['cpu_ratio']:.3%}",
                str(turn["rounds"]),
                str(turn["missed"]),
                f"{turn['longest_ms']:.2f} ms",
                drift,
            )
    console.print(table)
    for name, part in parts.items():
        low, median, high = (part[f"{end}_s"] * 1e6 for end in ("low", "median", "high"))
        console.print(f"{name}: {median:.0f} µs of CPU ({low:.0f} to {high:.0f}), n = {part['n']}")
    console.print(f"limit {LIMIT_RATIO:.1%}; real driver: {driver}")
    RESULTS.write_text(
        json.dumps(
            {
                "benchmark": "gpu",
                "machine": host.describe(),
                "gpus": describe_gpus(),
                "load_average_before": load_before,
                "load_average_after": os.getloadavg(),
                "driver": driver,
                "stand_in": {"gpus": GPUS, "interval_s": INTERVAL_S, "seconds": SECONDS, "turns": rows},
                "limit_cpu_ratio": LIMIT_RATIO,
                "parts": parts,
            },
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )


def _one_gpu(nvml: FastNvml) -> Callable[[], object]:
    """Return a reading of one GPU between its slow values."""
    sampler = GpuSampler(nvml, gpus=[0], clock=lambda: 1.0)
    sampler.read()
    return sampler.read


if __name__ == "__main__":
    main()
