"""A sampler of this machine's NVIDIA GPUs through NVML, the library behind ``nvidia-smi``."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from ollamalab.errors import SamplerUnavailable, SettingsError
from ollamalab.gpu.device import Device, Spent
from ollamalab.gpu.nvml import mig_handles, open_nvml
from ollamalab.gpu.readings import INSTANCE_VALUES, Reading, instance_readings, readings
from ollamalab.gpu.values import Readings


class GpuSampler:
    """Reads every GPU that the driver shows; sources "gpu0", "gpu1", ... in NVML's order.

    ``CUDA_VISIBLE_DEVICES`` does not hide a GPU from NVML. A GPU that is cut into MIG instances has a source
    for each of them too, "gpu0/mig3" by its GPU instance id, which tells its memory. Values: see ``VALUES``.
    Each kind is read at its own pace: power and energy every time, the SM clock and utilisation about five
    times a second, memory twice, PCIe every 10 s; what was not due is absent. ``power_w`` is told only where
    the instant is not, and is an instant or an average, depending on the chip; ``energy_j`` counts since the
    driver was loaded; ``clock_event_mask`` is read by ``clock_events`` and ``is_throttled`` is 1 while heat
    or power holds the clocks down. Same figures: ``nvidia-smi -q``.

    Attributes:
        notes: What can no longer be told, and why.
        names: Source to the product's name.
    """

    def __init__(
        self,
        nvml: Any = None,
        *,
        gpus: Sequence[int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Open the driver and find its GPUs.

        Args:
            nvml: The module to call; default ``pynvml``.
            gpus: Indices of those to read; default all.
            clock: Monotonic seconds.

        Raises:
            SamplerUnavailable: No GPU, with the reason.
            SettingsError: There is no GPU of such an index.
        """
        self.notes: list[str] = []
        self.names: dict[str, str] = {}
        self._clock = clock
        self._spent: defaultdict[str, Spent] = defaultdict(Spent)
        self._nvml, count = open_nvml(nvml)
        self._is_open = True
        try:
            wanted = range(count) if gpus is None else _existing(gpus, count)
        except SettingsError:
            self.close()
            raise
        kinds = readings()
        self._devices: list[Device] = []
        for place, index in enumerate(wanted):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            except self._nvml.NVMLError as error:
                self.notes.append(f"gpu{index} cannot be read: {error}")
                continue
            self._devices += self._devices_of(handle, index, kinds, place / len(wanted))

    def _devices_of(
        self, handle: Any, index: int, kinds: Mapping[str, Reading], stagger: float
    ) -> Iterator[Device]:
        """Give a GPU and its MIG instances."""
        source = f"gpu{index}"
        self.names[source] = self._name(handle)
        spent = None if self._devices else self._spent  # one GPU's cost tells that of all
        yield Device(self._nvml, handle, source, kinds, spent, stagger=stagger)
        for instance, its_handle in mig_handles(self._nvml, handle).items():
            its_source = f"{source}/mig{instance}"
            self.names[its_source] = self._name(its_handle)
            yield Device(
                self._nvml,
                its_handle,
                its_source,
                instance_readings(),
                None,
                names=INSTANCE_VALUES,
                stagger=stagger,
            )

    def _name(self, handle: Any) -> str:
        try:
            return str(self._nvml.nvmlDeviceGetName(handle))
        except self._nvml.NVMLError:
            return ""

    def read(self) -> Readings:
        """Return the values of each GPU that are due now; one that went away is left out and noted.

        Raises:
            SamplerUnavailable: No GPU is left.
        """
        now_s = self._clock()
        found = {}
        for device in tuple(self._devices):
            try:
                values = device.read(now_s)
            except SamplerUnavailable as error:
                self._devices.remove(device)
                self.notes.append(str(error))
                continue
            if values:
                found[device.source] = values
        if not self._devices:
            raise SamplerUnavailable("no GPU is left to read")
        return found

    def costs_s(self) -> dict[str, float | None]:
        """Return the mean seconds that a reading of each kind takes on the first GPU; None before it."""
        return {
            kind: spent.elapsed_s / spent.readings if spent.readings else None
            for kind, spent in self._spent.items()
        }

    def close(self) -> None:
        """Let go of the driver; nothing can be read afterwards."""
        if self._is_open:
            self._is_open = False
            self._devices = []
            self._nvml.nvmlShutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _existing(gpus: Sequence[int], count: int) -> list[int]:
    """Return the indices as they are, once each.

    Raises:
        SettingsError: One of them does not exist.
    """
    for index in gpus:
        if not 0 <= index < count:
            there = "only GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"
            raise SettingsError(f"there is no GPU {index}: this machine has {there}; see `nvidia-smi -L`")
    return list(dict.fromkeys(gpus))
