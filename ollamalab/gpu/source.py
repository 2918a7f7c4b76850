"""What every source of GPU samples offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ollamalab.gpu.values import Readings


class GpuSource(Protocol):
    """Tells the values of GPUs; a ``Sampler``, used from one thread at a time.

    Attributes:
        notes: What it cannot tell and why, one line each.
    """

    notes: list[str]

    @property
    def names(self) -> Mapping[str, str]:
        """Source to the product's name, as far as it is known."""
        ...

    def read(self) -> Readings:
        """Return the values that are new, by source; names are among ``VALUES``.

        Raises:
            SamplerUnavailable: It has nothing to read any more, for good.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds; to close again does nothing."""
        ...
