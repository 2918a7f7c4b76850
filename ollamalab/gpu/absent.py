"""What stands where there is no GPU."""

from __future__ import annotations

from typing import Self

from ollamalab.gpu.values import Readings


class NoGpu:
    """Stands where there is no GPU: reads nothing and notes why, so that a notebook runs the same.

    Attributes:
        notes: The reason.
        names: Of no GPU.
    """

    def __init__(self, reason: str) -> None:
        self.notes = [reason]
        self.names: dict[str, str] = {}

    def read(self) -> Readings:
        """Return nothing."""
        return {}

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
