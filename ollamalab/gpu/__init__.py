"""Samplers of GPUs: NVML, ``nvidia-smi``, a page of Prometheus text, a recording, none; facts about them.

::

    with Sampling([open_gpus("auto")]) as sampling: ...

Every source tells the same values in the same units (``VALUES``) under the same names of GPUs ("gpu0", a
MIG instance "gpu0/mig3"). What cannot be told is None, and without a GPU there is a reason, never a zero.
"""

from ollamalab.gpu.absent import NoGpu
from ollamalab.gpu.description import describe_gpus
from ollamalab.gpu.detached import Detached
from ollamalab.gpu.opening import gpu_sampler, open_gpus
from ollamalab.gpu.processes import GpuProcess, gpu_processes
from ollamalab.gpu.prometheus import EXPOSED
from ollamalab.gpu.replay import ReplaySampler
from ollamalab.gpu.sampler import GpuSampler
from ollamalab.gpu.scrape import PrometheusSampler
from ollamalab.gpu.smi import NvidiaSmiSampler
from ollamalab.gpu.source import GpuSource
from ollamalab.gpu.values import CLOCK_EVENTS, VALUES, Readings, clock_events, throttling

__all__ = [
    "CLOCK_EVENTS",
    "EXPOSED",
    "VALUES",
    "Detached",
    "GpuProcess",
    "GpuSampler",
    "GpuSource",
    "NoGpu",
    "NvidiaSmiSampler",
    "PrometheusSampler",
    "Readings",
    "ReplaySampler",
    "clock_events",
    "describe_gpus",
    "gpu_processes",
    "gpu_sampler",
    "open_gpus",
    "throttling",
]
