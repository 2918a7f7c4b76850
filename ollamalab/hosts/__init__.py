"""Targets and their settings: the embedded server, a local ``ollama serve``, a server elsewhere.

::

    async with open_target("embedded", ServerSettings(num_parallel=4), models=["smollm2:135m"]) as target:
        ...  # ask target.url; watch target.pids() and target.slots()
        await target.restart(ServerSettings(num_parallel=8))

A *target* is a server to measure. Those that we start get a port of their own, end with the ``with`` and
do not outlive us even after ``kill -9``; a server that was there before is never changed. Several targets
may be open at once, each with GPUs of its own (``gpus=[0]``), on a port that was chosen (``port=11500``),
with a folder of models of its own (``environment={"OLLAMA_MODELS": ...}``).
"""

from ollamalab.hosts.engines import EngineProcess
from ollamalab.hosts.library import models_folder, weights_file
from ollamalab.hosts.opening import TARGET_KINDS, check_target, open_target
from ollamalab.hosts.process import Startup
from ollamalab.hosts.slots import SlotSampler
from ollamalab.hosts.target import Target

__all__ = [
    "TARGET_KINDS",
    "EngineProcess",
    "SlotSampler",
    "Startup",
    "Target",
    "check_target",
    "models_folder",
    "open_target",
    "weights_file",
]
