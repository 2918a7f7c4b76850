"""Loading a model without generating: the request for it.

An empty prompt loads a model and starts its keep-alive anew; sent to a loaded one it only renews. Other
load-time options than the traffic's would load it once more instead. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ollamalab.protocol.calls import Call
from ollamalab.protocol.endpoints import Kind
from ollamalab.protocol.lines import encode_line
from ollamalab.protocol.options import load_options
from ollamalab.protocol.upstream import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Preload:
    """How a model is to be loaded.

    Attributes:
        model: Its name.
        options: Those that decide the load (``load_options``).
        shift: Another such, beside the options; None leaves it out.
        keep_alive: As a request's body has it; None leaves it to the server.
        is_embedding: Whether the model makes vectors; such a one may refuse ``/api/generate``.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    shift: bool | None = None
    keep_alive: float | str | None = None
    is_embedding: bool = False

    def renewal(self) -> Preload:
        """Return the same without ``keep_alive``: how long the model stays is not changed."""
        return replace(self, keep_alive=None)

    def request(self) -> Request:
        """Return the request."""
        body: dict[str, Any] = {"model": self.model}
        if self.is_embedding:
            body["input"] = []
        elif self.shift is not None:
            body["shift"] = self.shift
        if self.options:
            body["options"] = dict(self.options)
        if self.keep_alive is not None:
            body["keep_alive"] = self.keep_alive
        path = "/api/embed" if self.is_embedding else "/api/generate"
        return Request(method="POST", path=path, body=encode_line(body))


def preload_of(call: Call) -> Preload:
    """Return how to load a model just as this request would have."""
    return Preload(
        model=call.model,
        options=load_options(call.options),
        shift=call.fields.get("shift"),
        keep_alive=call.fields.get("keep_alive"),
        is_embedding=call.endpoint.kind is Kind.EMBEDDING,
    )
