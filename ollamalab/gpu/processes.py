"""Which processes hold memory of the GPUs: asked now and then, never in a sampler's loop.

The driver gathers such a list under a lock that the GPU's users need too: 4.5 ms a call were seen on one
machine (MangoHud PR 2104).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from ollamalab.errors import SamplerUnavailable
from ollamalab.gpu.nvml import open_nvml


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuProcess:
    """A process that computes on a GPU.

    Attributes:
        source: The GPU, "gpu0".
        pid: In the driver's view: a container's own numbers may differ.
        name: Of its program; None where it may not be asked.
        memory_bytes: That it holds; None where the driver does not say, as under MIG without permission.
    """

    source: str
    pid: int
    name: str | None
    memory_bytes: int | None


def gpu_processes(nvml: Any = None) -> tuple[GpuProcess, ...]:
    """Return the processes that compute on the GPUs, by GPU and then in the driver's order.

    Same figures: ``nvidia-smi --query-compute-apps=pid,name,used_memory``.
    """
    try:
        module, count = open_nvml(nvml)
    except SamplerUnavailable:
        return ()
    try:
        found = {f"gpu{index}": _processes(module, index) for index in range(count)}
    finally:
        module.nvmlShutdown()
    return tuple(_named(source, pid, held) for source, one in found.items() for pid, held in one.items())


def _processes(nvml: Any, index: int) -> Mapping[int, int | None]:
    try:
        listed = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(index))
    except nvml.NVMLError:
        return {}
    return {one.pid: one.usedGpuMemory for one in listed}


def _named(source: str, pid: int, memory_bytes: int | None) -> GpuProcess:
    try:
        name = psutil.Process(pid).name()
    except psutil.Error:
        name = None
    return GpuProcess(source=source, pid=pid, name=name, memory_bytes=memory_bytes)
