"""Who else wants to know of each request at each member: a protocol, so that no such part is needed."""

from __future__ import annotations

from typing import Protocol

from ollamalab.protocol.calls import Call


class Visit(Protocol):
    """One request at one member."""

    def answering(self) -> None:
        """A good answer has begun."""
        ...

    def ended(self, load_s: float | None) -> None:
        """The request has left the member.

        Args:
            load_s: What the member says that the request waited for its model; None if it does not say.
        """
        ...


class Visits(Protocol):
    """Hears of every request."""

    def begun(self, name: str, call: Call) -> Visit | None:
        """A request is sent to the member of this name; return who hears how it goes on, if anybody."""
        ...
