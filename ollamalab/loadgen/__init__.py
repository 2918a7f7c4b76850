"""Offers requests to any Upstream and records what happened.

- ``settings``: how load is offered
- ``health``: whether the client itself was fit to measure
- ``run``: the loops
- ``generator``: the public face
- ``summary``: what a run comes to
"""

from ollamalab.loadgen.generator import LoadGenerator, LoadProgress, LoadResult
from ollamalab.loadgen.health import InstrumentHealth, Lag
from ollamalab.loadgen.settings import LoadSettings
from ollamalab.loadgen.summary import growth_s, load_summary, waiting_ratio

__all__ = [
    "InstrumentHealth",
    "Lag",
    "LoadGenerator",
    "LoadProgress",
    "LoadResult",
    "LoadSettings",
    "growth_s",
    "load_summary",
    "waiting_ratio",
]
