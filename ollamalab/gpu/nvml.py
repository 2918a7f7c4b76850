"""The NVIDIA driver's library: opening it, and what its errors mean.

Every function here and beside takes ``nvml``, the module to call; the default is ``pynvml`` of
nvidia-ml-py.
"""

from __future__ import annotations

import importlib
from typing import Any

from ollamalab.errors import SamplerUnavailable

#: Names of ``NVML_ERROR_...`` that mean "never, on this device".
_UNSUPPORTED = (
    "NOT_SUPPORTED",
    "INVALID_ARGUMENT",
    "NO_PERMISSION",
    "FUNCTION_NOT_FOUND",
    "ARGUMENT_VERSION_MISMATCH",
    "DEPRECATED",
)
#: Names of those that mean "the device or its driver is gone".
_GONE = ("UNINITIALIZED", "DRIVER_NOT_LOADED", "GPU_IS_LOST", "RESET_REQUIRED", "GPU_NOT_FOUND")

_WHY_NOT = {
    "LIBRARY_NOT_FOUND": "the NVIDIA driver's library (libnvidia-ml) is not on this machine",
    "DRIVER_NOT_LOADED": "the NVIDIA driver is not loaded; what does `nvidia-smi` say?",
    "NO_PERMISSION": "no permission to ask the NVIDIA driver; may this user read /dev/nvidia*?",
    "LIB_RM_VERSION_MISMATCH": "NVIDIA's driver and library differ in version; reboot after the update",
}


def open_nvml(nvml: Any = None) -> tuple[Any, int]:
    """Initialise NVML; return the module and the number of GPUs.

    Raises:
        SamplerUnavailable: There is none, with the reason.
    """
    module = importlib.import_module("pynvml") if nvml is None else nvml
    try:
        module.nvmlInit()
        count = module.nvmlDeviceGetCount()
    except module.NVMLError as error:
        reasons = {getattr(module, f"NVML_ERROR_{name}"): reason for name, reason in _WHY_NOT.items()}
        raise SamplerUnavailable(f"no GPU: {reasons.get(error.value, error)}") from error
    if not count:
        module.nvmlShutdown()
        raise SamplerUnavailable("no GPU: the NVIDIA driver is loaded but shows none")
    return module, count


def is_unsupported(nvml: Any, code: int) -> bool:
    """Whether an error code means that a device never tells this."""
    return _is(nvml, code, _UNSUPPORTED)


def is_gone(nvml: Any, code: int) -> bool:
    """Whether an error code means that the device or its driver is gone."""
    return _is(nvml, code, _GONE)


def _is(nvml: Any, code: int, names: tuple[str, ...]) -> bool:
    return code in {getattr(nvml, f"NVML_ERROR_{name}") for name in names}


def mig_handles(nvml: Any, handle: Any) -> dict[int, Any]:
    """Return the handles of a GPU's MIG instances by GPU instance id; empty without MIG.

    Several compute instances may share a GPU instance, and with it the memory: the first stands for it.
    """
    try:
        if not nvml.nvmlDeviceGetMigMode(handle)[0]:
            return {}
        places = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:
        return {}
    found: dict[int, Any] = {}
    for place in range(places):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            found.setdefault(nvml.nvmlDeviceGetGpuInstanceId(instance), instance)
        except nvml.NVMLError:
            continue  # nothing in this place
    return found
