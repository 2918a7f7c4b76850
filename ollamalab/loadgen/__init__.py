"""Offers requests to any Upstream and records what happened.

- ``settings``: how load is offered
- ``capture``: one request as it was seen, raw, and the record made of it afterwards
- ``health``: whether the client itself was fit to measure
- ``run``: the loops
- ``generator``: the public face
"""

from ollamalab.loadgen.capture import Capture
from ollamalab.loadgen.generator import LoadGenerator, LoadProgress, LoadResult
from ollamalab.loadgen.health import InstrumentHealth, Lag
from ollamalab.loadgen.settings import LoadSettings

__all__ = [
    "Capture",
    "InstrumentHealth",
    "Lag",
    "LoadGenerator",
    "LoadProgress",
    "LoadResult",
    "LoadSettings",
]
