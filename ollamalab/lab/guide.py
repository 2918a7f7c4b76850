"""What a guide's settings really are: by reading, by the server's own words, and by trying."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ollamalab.client import OllamaClient
from ollamalab.doctor import Inventory, Unread, examine
from ollamalab.doctor.inventory import Finding, ServerProcess
from ollamalab.doctor.storage import driver_cache
from ollamalab.hosts import open_target
from ollamalab.lab.observation import Observation
from ollamalab.protocol.names import parse_name
from ollamalab.report import Column, Table
from ollamalab.settings import ServerSettings, server_settings_from_environment
from ollamalab.settings.variables import GONE

#: The version that the table of variables was taken from.
_VERSION = "0.33.0"

_OVERHEAD, _PUBLISHED_OVERHEAD = "OLLAMA_GPU_OVERHEAD", "2048"


@dataclass(frozen=True, kw_only=True)
class Advised:
    """A setting as a guide gives it.

    Attributes:
        setting: "OLLAMA_KEEP_ALIVE=24h".
        source: "S1" or "S4".
        said: What the guide says that it does.
        really: What it does, where the server reads it as meant or almost so.
        kind: In a few words, how the two differ; a wrong unit and a default are found by code.
    """

    setting: str
    source: str
    said: str
    really: str = ""
    kind: str = "as said"


#: Every server variable of the source guides, in their order.
GUIDE = (
    Advised(
        setting="OLLAMA_MAX_LOADED_MODELS=1",
        source="S1",
        said="keeps the model in memory",
        really="A limit: another model evicts this one. How long one stays is OLLAMA_KEEP_ALIVE",
        kind="other meaning",
    ),
    Advised(
        setting="OLLAMA_FLASH_ATTENTION=1",
        source="S1",
        said="turns flash attention on",
        really="Left unset it is on where the GPUs support it; a quantised cache needs it",
        kind="seldom needed",
    ),
    Advised(
        setting="OLLAMA_NUM_PARALLEL=1",
        source="S1",
        said="one request at a time, for stability",
        really="Unset is the same since Ollama 0.10",
    ),
    Advised(
        setting="OLLAMA_KEEP_ALIVE=24h",
        source="S1",
        said="keeps the model for 24 hours",
        really="Counted from the end of the last request; a request's own keep_alive wins",
    ),
    Advised(
        setting="OLLAMA_LOAD_TIMEOUT=600s",
        source="S1",
        said="gives a load more time",
        really="Ends a load that shows no progress for so long; each sign of life starts it anew",
        kind="other meaning",
    ),
    Advised(setting=f"{_OVERHEAD}={_PUBLISHED_OVERHEAD}", source="S1", said="reserves 2 GB of the GPU"),
    Advised(setting=f"{_OVERHEAD}=4096", source="S1", said="reserves 4 GB of the GPU"),
    Advised(
        setting="OLLAMA_KEEP_ALIVE=-1",
        source="S4",
        said="keeps the model for ever",
        really="Until the server ends or another model needs its place",
    ),
    Advised(
        setting="OLLAMA_NUM_PARALLEL=4",
        source="S4",
        said="sets an internal batch size",
        really="Slots: four requests decode together, each with a context of its own in memory",
        kind="other meaning",
    ),
)


def doctor_says(setting: str) -> tuple[Finding, ...]:
    """Return what ``ollamalab doctor`` finds in a server that has one variable set."""
    name, _, value = setting.partition("=")
    unread = Unread("not looked at")
    return examine(
        Inventory(
            url="",
            host={},
            gpus={"gpus": []},
            version=_VERSION,
            models=unread,
            loaded=unread,
            watch=unread,
            process=ServerProcess(pid=0, name="ollama", environment={name: value}),
            engines=unread,
            disk=unread,
            driver_cache=unread,
            streamed=unread,
        )
    )


def guide_table() -> Table:
    """Return what each variable of the source guides is said to do and does."""
    rows = []
    for item in GUIDE:
        kind, really = item.kind, item.really
        if _is_default(item.setting):
            kind = "is the default"
        for found in doctor_says(item.setting):
            kind, really = "other unit", f"{found.evidence}. Better {found.fix}"
        rows.append((item.setting, item.source, item.said, kind, really))
    names = ("Setting", "Source", "The guide says", "In fact", "Why")
    return Table.of(
        "guide",
        "What the settings of the guides really are",
        [Column(name=name) for name in names],
        rows,
        caption=f"By the source of Ollama {_VERSION}; units as `ollamalab doctor` reads them.",
    )


def dead_table(*, target: str, ignored: Mapping[str, str]) -> Table:
    """Return the variables that do nothing: those of old guides, and those that a server ignores here.

    Args:
        target: The server.
        ignored: Variables of this environment that it ignores, to the reason.
    """
    rows = [(name, "guides", reason) for name, reason in GONE.items()]
    rows += [(name, f"set here, for {target}", reason) for name, reason in ignored.items()]
    return Table.of(
        "dead",
        "Variables that do nothing",
        [Column(name=name) for name in ("Variable", "Found in", "Why")],
        rows,
        caption="Ollama ignores a variable that it does not know, without a word. `ollamalab doctor URL` "
        "names those that a running server has.",
    )


def _is_default(setting: str) -> bool:
    """Return whether a server without this variable has the same settings."""
    name, _, value = setting.partition("=")
    return server_settings_from_environment({name: value}) == ServerSettings()


# The unit of OLLAMA_GPU_OVERHEAD


async def observe_overhead(target: str, model: str) -> Observation:
    """Let Ollama itself say what OLLAMA_GPU_OVERHEAD=2048 reserves: in its help, and when it loads on a GPU.

    Args:
        target: Only "ollama" has the variable.
        model: Loaded, so that it says what it keeps free.
    """
    if target != "ollama":
        (found,) = doctor_says(f"{_OVERHEAD}={_PUBLISHED_OVERHEAD}")
        why = f"only `ollama serve` has the variable, and the target is {target}"
        return Observation(holds=None, evidence=f"{why}; by its source, {found.evidence}")
    with tempfile.TemporaryDirectory() as folder:
        log_folder = Path(folder)
        async with (
            open_target(
                target,
                models=[model],
                environment={_OVERHEAD: _PUBLISHED_OVERHEAD},
                log_folder=log_folder,
            ) as server,
            OllamaClient(server.url) as client,
        ):
            await client.preload(model)
        log = await asyncio.to_thread(_all_text, log_folder)
    return overhead_seen(await _help_text(), log)


def _all_text(folder: Path) -> str:
    return "".join(file.read_text(errors="replace") for file in folder.iterdir())


async def _help_text() -> str:
    """Return what ``ollama serve --help`` says."""
    process = await asyncio.create_subprocess_exec(
        shutil.which("ollama") or "ollama",
        *("serve", "--help"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return said.decode(errors="replace")


def overhead_seen(help_text: str, log: str) -> Observation:
    """Return whether 2048 is 2 GB, by Ollama's own words.

    Args:
        help_text: Of ``ollama serve --help``.
        log: Of a server with that setting, a load included.
    """
    logged = re.search(r'msg="gpu memory".* overhead="([^"]*)"', log)
    if logged:
        evidence = f'with {_OVERHEAD}={_PUBLISHED_OVERHEAD} the server logs overhead="{logged[1]}" at a load'
        return Observation(holds=logged[1] == "2.0 GiB", evidence=evidence, n=1)
    described = re.search(rf"{_OVERHEAD}\s+(.+)", help_text)
    if described:
        evidence = f"`ollama serve --help` says of {_OVERHEAD}: “{described[1].strip()}”"
        return Observation(holds="bytes" not in described[1], evidence=evidence, n=1)
    return Observation(holds=None, evidence="the server neither describes the setting nor logs it")


# Compiling at a load


@dataclass(frozen=True, kw_only=True)
class CudaLoad:
    """One load by a fresh server on an NVIDIA GPU.

    Attributes:
        is_first: Whether the driver's cache of compiled code was empty.
        load_s: Until the model was ready.
        compiled_bytes: By which that cache grew.
        is_on_gpu: Whether the model lies on a GPU at all.
    """

    is_first: bool
    load_s: float
    compiled_bytes: int
    is_on_gpu: bool


async def observe_compiling(
    target: str, model: str, *, starts: int, gpus: Mapping[str, Any], not_run: str | None = None
) -> Observation:
    """Try whether a load compiles GPU code: with an empty cache of the driver's, and with what it left there.

    Args:
        target: "embedded" or "ollama".
        model: To load; its file is read beforehand.
        starts: Pairs of fresh servers.
        gpus: As ``describe_gpus`` tells them.
        not_run: Why it cannot be tried; None if it can.
    """
    if not_run or not gpus["gpus"]:
        return Observation(holds=None, evidence=not_run or str(gpus["reason"]))
    loads = []
    for _ in range(starts):
        with tempfile.TemporaryDirectory() as cache:
            loads += [
                await _load_with(cache, target, model, is_first=True),
                await _load_with(cache, target, model, is_first=False),
            ]
    return compiling_seen(loads)


async def _load_with(cache: str, target: str, model: str, *, is_first: bool) -> CudaLoad:
    """Load the model with a fresh server whose driver keeps compiled code in a folder."""
    before = _size_bytes(cache)
    async with (
        open_target(target, models=[model], environment={"CUDA_CACHE_PATH": cache}) as server,
        OllamaClient(server.url) as client,
    ):
        start_s = time.perf_counter()
        await client.preload(model)
        load_s = time.perf_counter() - start_s
        key = parse_name(model).key
        on_gpu = [one["size_vram"] for one in await client.ps() if parse_name(one["name"]).key == key]
    return CudaLoad(
        is_first=is_first,
        load_s=load_s,
        compiled_bytes=_size_bytes(cache) - before,
        is_on_gpu=any(on_gpu),
    )


def _size_bytes(cache: str) -> int:
    found = driver_cache({**os.environ, "CUDA_CACHE_PATH": cache})
    return 0 if isinstance(found, Unread) else found.size_bytes


def compiling_seen(loads: Sequence[CudaLoad]) -> Observation:
    """Return whether an ordinary load compiles GPU code: one that is not the first ever."""
    if not any(load.is_on_gpu for load in loads):
        return Observation(holds=None, evidence="the server loads the model without the GPU")
    parts = []
    for is_first, name in ((True, "an empty cache of the driver's"), (False, "what that load left in it")):
        group = [load for load in loads if load.is_first is is_first]
        wait_s = median(load.load_s for load in group)
        compiled = median(load.compiled_bytes for load in group) / 1e6
        parts.append(f"with {name} a load took {wait_s:.2f} s and compiled {compiled:.1f} MB")
    again = any(load.compiled_bytes for load in loads if not load.is_first)
    return Observation(holds=again, evidence="; ".join(parts) + " (medians)", n=len(loads))
