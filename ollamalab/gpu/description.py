"""The facts of this machine's GPUs that can change a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ollamalab.errors import SamplerUnavailable
from ollamalab.gpu.nvml import open_nvml


def describe_gpus(nvml: Any = None) -> dict[str, Any]:
    """Return the facts of the GPUs that can change a number; goes into the manifest.

    Returns:
        ``gpus``, one per GPU in NVML's order, ``driver``, ``cuda_version``, and ``reason``: why ``gpus`` is
        empty, else None. Of each GPU: ``name``, ``memory_bytes``, ``compute_capability``, ``power_limit_w``
        (in force), ``power_default_w``, ``is_persistent`` (driver stays loaded), ``is_mig``, ``pcie``
        (generation and width now; idle links train down) and ``compute_processes`` (already running).
        None where not told.
    """
    try:
        module, count = open_nvml(nvml)
    except SamplerUnavailable as error:
        return {"gpus": [], "driver": None, "cuda_version": None, "reason": str(error)}
    try:
        cuda = module.nvmlSystemGetCudaDriverVersion_v2()
        return {
            "gpus": [_describe(module, index) for index in range(count)],
            "driver": module.nvmlSystemGetDriverVersion(),
            "cuda_version": f"{cuda // 1000}.{cuda % 1000 // 10}",
            "reason": None,
        }
    finally:
        module.nvmlShutdown()


def _describe(nvml: Any, index: int) -> dict[str, Any]:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return {"name": f"cannot be asked: {error}"}

    def ask(name: str, convert: Callable[[Any], Any]) -> Any:
        try:
            return convert(getattr(nvml, name)(handle))
        except nvml.NVMLError:
            return None

    generation = ask("nvmlDeviceGetCurrPcieLinkGeneration", int)
    width = ask("nvmlDeviceGetCurrPcieLinkWidth", int)
    return {
        "name": ask("nvmlDeviceGetName", str),
        "memory_bytes": ask("nvmlDeviceGetMemoryInfo", lambda memory: int(memory.total)),
        "compute_capability": ask("nvmlDeviceGetCudaComputeCapability", lambda pair: f"{pair[0]}.{pair[1]}"),
        "power_limit_w": ask("nvmlDeviceGetEnforcedPowerLimit", lambda mw: mw / 1e3),
        "power_default_w": ask("nvmlDeviceGetPowerManagementDefaultLimit", lambda mw: mw / 1e3),
        "is_persistent": ask("nvmlDeviceGetPersistenceMode", bool),
        "is_mig": ask("nvmlDeviceGetMigMode", lambda modes: bool(modes[0])),
        "pcie": None if generation is None or width is None else f"{generation}.0 x{width}",
        "compute_processes": ask("nvmlDeviceGetComputeRunningProcesses", len),
    }
