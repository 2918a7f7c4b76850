"""One GPU as every source is to tell of it, and what stands in for each source's other side.

The texts have the form that the tools write: ``nvidia-smi --format=csv,noheader,nounits`` of driver 580,
and the page of DCGM exporter 4 with its default counters.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ollamalab.records import Sample
from ollamalab.report.frames import samples_parquet

#: What is true of the machine; a source may not know all of it.
MACHINE: Mapping[str, float] = {
    "power_instant_w": 412.0,
    "power_average_w": 388.25,
    "energy_j": 1234.567,
    "sm_utilisation_ratio": 0.85,
    "memory_utilisation_ratio": 0.40,
    "memory_used_bytes": 20 << 30,
    "memory_free_bytes": 59 << 30,
    "memory_total_bytes": 80 << 30,
    "sm_clock_mhz": 1980,
    "memory_clock_mhz": 3201,
    "temperature_c": 61,
    "performance_state": 0,
    "clock_event_mask": 4,
    "is_throttled": 1.0,
    "pcie_generation": 5,
    "pcie_generation_max": 5,
    "pcie_width": 16,
    "pcie_sent_bytes": 5e6,
    "pcie_received_bytes": 7e6,
}

NAME = "NVIDIA Stand-in"

#: What nvidia-smi writes for each field.
SMI = {
    "index": "0",
    "name": NAME,
    "pstate": "P0",
    "pcie.link.gen.max": "5",
    "pcie.link.gen.current": "5",
    "pcie.link.width.current": "16",
    "temperature.gpu": "61",
    "utilization.gpu": "85",
    "utilization.memory": "40",
    "memory.total": "81920",
    "memory.free": "60416",
    "memory.used": "20480",
    "power.draw": "388.25",
    "power.draw.average": "388.25",
    "power.draw.instant": "412.00",
    "clocks.sm": "1980",
    "clocks.mem": "3201",
    "clocks_event_reasons.active": "0x0000000000000004",
    "clocks_throttle_reasons.active": "0x0000000000000004",
}

_LABELS = (
    'gpu="0",UUID="GPU-604ac76c-d9cf-fef3-62e9-d92044ab6e52",pci_bus_id="00000000:1B:00.0",device="nvidia0",'
    f'modelName="{NAME}",Hostname="gpu2",DCGM_FI_DRIVER_VERSION="580.159.03"'
)

#: A page of DCGM's exporter; a blank stands where the driver told nothing.
DCGM_PAGE = "".join(
    f"# HELP {metric} {text}\n# TYPE {metric} {kind}\n{metric}{{{_LABELS}}} {value}\n"
    for metric, kind, text, value in (
        ("DCGM_FI_DEV_SM_CLOCK", "gauge", "SM clock frequency (in MHz).", "1980"),
        ("DCGM_FI_DEV_MEM_CLOCK", "gauge", "Memory clock frequency (in MHz).", "3201"),
        ("DCGM_FI_DEV_MEMORY_TEMP", "gauge", "Memory temperature (in C).", "9223372036854775794"),
        ("DCGM_FI_DEV_PSTATE", "gauge", "Performance state.", "9223372036854775794"),
        ("DCGM_FI_DEV_GPU_TEMP", "gauge", "GPU temperature (in C).", "61"),
        ("DCGM_FI_DEV_POWER_USAGE_INSTANT", "gauge", "Power draw (in W).", "412.000000"),
        (
            "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
            "counter",
            "Total energy consumption since boot (in mJ).",
            "1234567",
        ),
        ("DCGM_FI_DEV_GPU_UTIL", "gauge", "GPU utilization (in %).", "85"),
        ("DCGM_FI_DEV_MEM_COPY_UTIL", "gauge", "Memory utilization (in %).", "40"),
        ("DCGM_FI_DEV_XID_ERRORS", "gauge", "Value of the last XID error encountered.", "0"),
        ("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "gauge", "Reasons.", "4"),
        ("DCGM_FI_DEV_FB_FREE", "gauge", "Framebuffer memory free (in MiB).", "60416"),
        ("DCGM_FI_DEV_FB_USED", "gauge", "Framebuffer memory used (in MiB).", "20480"),
        ("DCGM_FI_DEV_FB_RESERVED", "gauge", "Framebuffer memory reserved (in MiB).", "1024"),
    )
)

_SMI = """#!{python}
import sys, time
answers, unknown, lines, then = {answers!r}, {unknown!r}, {lines!r}, {then!r}
fields = next(flag for flag in sys.argv if flag.startswith("--query-gpu=")).partition("=")[2].split(",")
for field in unknown:
    if field in fields:
        print(f'Field "{{field}}" is not a valid field to query.', flush=True)
        sys.exit(2)
pause_s = int(next(flag for flag in sys.argv if flag.startswith("--loop-ms=")).partition("=")[2]) / 1e3
while lines:
    print(", ".join(answers[field] for field in fields), flush=True)
    lines -= 1
    time.sleep(pause_s)
if then == "hang":
    time.sleep(3600)
print(then)
sys.exit(9)
"""

FOREVER = 10**9

_J_PER_S = 400


def nvidia_smi(
    folder: Path,
    *,
    unknown: tuple[str, ...] = (),
    lines: int = FOREVER,
    then: str = "hang",
    answers: Mapping[str, str] = SMI,
) -> str:
    """Write a command that stands in for nvidia-smi; return its path.

    Args:
        folder: Where to.
        unknown: Fields that this version does not know.
        lines: What it writes before ``then``.
        then: "hang", or what it says before it ends with status 9.
        answers: Field to text.
    """
    path = folder / "nvidia-smi"
    text = _SMI.format(
        python=sys.executable, answers=dict(answers), unknown=list(unknown), lines=lines, then=then
    )
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@contextmanager
def page(text: str) -> Iterator[str]:
    """Serve a page on a real socket; give its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_there = self.path == "/metrics"
            body = text.encode() if is_there else b"404 page not found"
            self.send_response(200 if is_there else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def recording(path: Path, *, seconds: int = 3, gpu: str = "gpu0") -> Path:
    """Write a recording of the machine, a sample each second, between those of the host; return its path."""
    samples = []
    for second in range(seconds):
        samples.append(Sample(at_s=50.0 + second, source="host", values={"cpu_ratio": 0.5}))
        values = {**MACHINE, "power_w": None, "energy_j": MACHINE["energy_j"] + _J_PER_S * second}
        samples.append(Sample(at_s=50.0 + second, source=gpu, values=values))
    if path.suffix == ".parquet":
        path.write_bytes(samples_parquet(samples))
        return path
    rows = [
        {"at_s": sample.at_s, "source": sample.source, "name": name, "value": value}
        for sample in samples
        for name, value in sample.values.items()
    ]
    path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows))
    return path


def told(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return what is known of the values, with the energy as at the beginning of a recording."""
    known = {name: value for name, value in values.items() if value is not None}
    known["energy_j"] -= (known["energy_j"] - MACHINE["energy_j"]) // _J_PER_S * _J_PER_S
    return known
