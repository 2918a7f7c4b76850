"""Which GPUs a server of ours sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollamalab.errors import SettingsError, TargetError


def gpu_variables(gpus: Sequence[int], described: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that show a process these NVIDIA GPUs and no others.

    Args:
        gpus: Their indices as ``nvidia-smi`` numbers them; none: as the environment has it.
        described: What ``describe_gpus`` says of this machine.

    Raises:
        SettingsError: An index is given twice.
        TargetError: There is no GPU of that index, or none at all.
    """
    if not gpus:
        return {}
    if len(set(gpus)) < len(gpus):
        raise SettingsError(f"gpus {list(gpus)} name one twice")
    there = len(described["gpus"])
    for index in gpus:
        if not 0 <= index < there:
            has = {0: described["reason"], 1: "this machine has GPU 0 only"}.get(
                there, f"this machine has GPUs 0 to {there - 1}"
            )
            raise TargetError(f"there is no GPU {index} ({has}); see `nvidia-smi -L`")
    # CUDA counts the fastest first unless told to count as nvidia-smi and NVML do.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
