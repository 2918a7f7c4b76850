"""Opening a source of GPU samples by what a user calls it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ollamalab.errors import SamplerUnavailable, SettingsError
from ollamalab.gpu.absent import NoGpu
from ollamalab.gpu.detached import Detached
from ollamalab.gpu.replay import ReplaySampler
from ollamalab.gpu.sampler import GpuSampler
from ollamalab.gpu.scrape import PrometheusSampler
from ollamalab.gpu.smi import NvidiaSmiSampler
from ollamalab.gpu.source import GpuSource

_NVML = "the NVIDIA driver"


def open_gpus(source: str = "auto", *, nvml: Any = None) -> GpuSource:
    """Return a source of GPU samples; none of them ever holds up its reader for more than a second.

    Args:
        source: "auto" for this machine's GPUs, or for the reason why there is none; "0,2" for those of these
            indices; "nvidia-smi" for that command; the URL of a DCGM exporter or of ``ollamalab monitor
            --serve``; the path of a recording (``ReplaySampler``); "none".
        nvml: The module to call for this machine's GPUs; default ``pynvml``.

    Raises:
        SettingsError: No such source, or no GPU of such an index.
        SamplerUnavailable: GPUs were asked for by name and cannot be read, with the reason.
        RunError: The recording cannot be used.
    """
    if source == "auto":
        try:
            return Detached(partial(GpuSampler, nvml), name=_NVML)
        except SamplerUnavailable as error:
            return NoGpu(str(error))
    if source == "none":
        return NoGpu("no GPU: none was to be watched")
    if source == "nvidia-smi":
        return NvidiaSmiSampler()
    if source.startswith(("http://", "https://")):
        return Detached(partial(PrometheusSampler, source), name=source)
    indices = source.split(",")
    if all(index.strip().isdecimal() for index in indices):
        wanted = [int(index) for index in indices]
        return Detached(partial(GpuSampler, nvml, gpus=wanted), name=_NVML)
    if Path(source).is_file():
        return ReplaySampler(Path(source))
    raise SettingsError(
        f"{source!r} is no source of GPU samples; give auto, indices such as 0,1, nvidia-smi, the URL of a "
        "DCGM exporter or of `ollamalab monitor --serve`, the file of a recording, or none"
    )


def gpu_sampler(nvml: Any = None) -> GpuSampler | NoGpu:
    """Return a sampler of this machine's GPUs, or one that only notes why there is none.

    It is read on the caller's thread, for as long as the driver takes; see ``open_gpus``.
    """
    try:
        return GpuSampler(nvml)
    except SamplerUnavailable as error:
        return NoGpu(str(error))
