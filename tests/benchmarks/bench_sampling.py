"""What watching costs: one reading of each sampler, one start through a lifeline, a second of sampling.

Each row alternates with the others, so that a passing disturbance hits all. GPU rows appear where there
is a GPU.

Run: ``python tests/benchmarks/bench_sampling.py`` (half a minute). Writes
``tests/benchmarks/results/sampling.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ollamalab import gpu, host
from ollamalab.hosts import SlotSampler
from ollamalab.hosts.slots import embedded_slots
from ollamalab.lifeline import tethered
from ollamalab.metrics import summarise
from ollamalab.sampling import Sampling

sys.path.insert(0, str(Path(__file__).parents[1]))
import ollama_standin

RESULTS = Path(__file__).parent / "results" / "sampling.json"
READINGS = 400
STARTS = 70
SAMPLING_S = 10.0
INTERVAL_S = 0.25


def timed_s(action: Callable[[], object]) -> float:
    """Return how long one call takes."""
    begun_s = time.perf_counter()
    action()
    return time.perf_counter() - begun_s


def interleaved(actions: dict[str, Callable[[], object]], n: int) -> dict[str, dict[str, Any]]:
    """Call all actions n times in turn; return a row of seconds for each."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()  # warm
    for _ in range(n):
        for name, action in actions.items():
            seconds[name].append(timed_s(action))
    return {name: row(values) for name, values in seconds.items()}


def row(values: list[float]) -> dict[str, Any]:
    """Return a summary with the 95 % interval of the median (order statistics)."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    low, high = ordered[round(n / 2 - reach)], ordered[round(n / 2 + reach)]
    return asdict(summarise(values)) | {"p50_low": low, "p50_high": high}


def start(command: list[str]) -> None:
    """Start a command and wait for its end."""
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        process.wait()


def main() -> None:
    """Measure, print the table, write the results."""
    load_before = os.getloadavg()
    engines = {"/lab/engines": [{"model": "m", "slots": ollama_standin.SLOTS}]}
    with ollama_standin.serve(engines) as server, gpu.gpu_sampler() as gpus:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        me = os.getpid()
        of_host, of_slots = host.HostSampler(), SlotSampler(lambda: embedded_slots(url))
        of_process = host.ProcessSampler(lambda: [me])
        readings = interleaved(
            {
                "host": of_host.read,
                "one process": of_process.read,
                "listing a process tree (once a second)": host.ProcessTree(me).pids,
                "slots over HTTP, answered in this process": of_slots.read,
            }
            | ({"all GPUs": gpus.read} if isinstance(gpus, gpu.GpuSampler) else {}),
            READINGS,
        )
        with Sampling([of_host, of_process, of_slots, gpus], interval_s=INTERVAL_S) as sampling:
            time.sleep(SAMPLING_S)
        server.shutdown()
    starts = interleaved(
        {"start of `true`": lambda: start(["true"]), "through a lifeline": lambda: start(tethered(["true"]))},
        STARTS,
    )
    statistics = sampling.statistics()
    table = Table(title="Milliseconds", title_justify="left")
    for column in ("", "n", "median", "95 % interval", "p99"):
        table.add_column(column, justify="right" if column else "left")
    for name, one in (readings | starts).items():
        p99 = "n/a" if one["p99"] is None else f"{one['p99'] * 1e3:.2f}"
        interval = f"{one['p50_low'] * 1e3:.3f} – {one['p50_high'] * 1e3:.3f}"
        table.add_row(name, str(one["n"]), f"{one['p50'] * 1e3:.3f}", interval, p99)
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{statistics.rounds} rounds in {statistics.elapsed_s:.1f} s, {statistics.missed} missed: "
        f"{statistics.cpu_ratio:.2%} of one core; {'; '.join(sampling.notes)}"
    )
    RESULTS.write_text(
        json.dumps(
            {
                "benchmark": "sampling",
                "machine": host.describe(),
                "gpus": gpu.describe_gpus(),
                "load_average_before": load_before,
                "load_average_after": os.getloadavg(),
                "readings_s": readings,
                "gpu_costs_s": gpus.costs_s() if isinstance(gpus, gpu.GpuSampler) else None,
                "starts_s": starts,
                "sampling": asdict(statistics) | {"cpu_ratio": statistics.cpu_ratio},
            },
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
