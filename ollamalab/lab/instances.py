"""Several instances of a server on one host, or several hosts: opened side by side, killed, brought back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from ollamalab.errors import NotRun, SettingsError
from ollamalab.lab.experiment import Lab
from ollamalab.lab.fronts import free_port
from ollamalab.lab.models import have_models, is_ours
from ollamalab.lab.subject import Subject
from ollamalab.settings import ServerSettings


def instance_name(number: int) -> str:
    """Return what an instance is called: "instance 1" is number 0."""
    return f"instance {number + 1}"


async def open_instances(
    lab: Lab,
    target: str,
    model: str,
    settings: ServerSettings,
    *,
    count: int,
    gpus: Sequence[Sequence[int]] = (),
    peers: Sequence[str] = (),
    others: Sequence[str] = (),
) -> list[Subject]:
    """Open several instances side by side, each with a port that it keeps; they close with the lab.

    Args:
        lab: Whose report describes them.
        target: "embedded", "ollama", or the URL of the first of several servers.
        model: That all of them have.
        settings: What instances of ours are started with.
        count: How many of ours.
        gpus: Of each instance, as ``nvidia-smi`` numbers them; empty: all see all.
        peers: Where the target is a URL: those of the other servers, which count instead of ``count``.
        others: More models that all of them have.

    Raises:
        NotRun: A URL comes alone.
        SettingsError: GPUs are given for another number of instances, or for servers that are not ours.
        TargetError: One does not start or answer, or lacks a model.
    """
    ours = is_ours(target)
    if gpus and (not ours or len(gpus) != count):
        raise SettingsError(f"gpus needs a list for each of {count} instances of ours, got {gpus!r}")
    if not ours and not peers:
        raise NotRun(f"{target} is one server; name others in peers, such as [http://gpu2:11434]")
    if not ours:
        urls = (target, *peers)
        return [
            await lab.subject(url, model, name=instance_name(number), others=others)
            for number, url in enumerate(urls)
        ]
    await have_models(target, model, *others)  # once, before all of them look for it
    return await asyncio.gather(
        *(
            lab.subject(
                target,
                model,
                settings,
                name=instance_name(number),
                others=others,
                port=free_port(),
                gpus=gpus[number] if gpus else (),
            )
            for number in range(count)
        )
    )


def kill(instance: Subject) -> None:
    """End an instance of ours and its engines as a crash would: at once, with what it was doing."""
    for pid in instance.target.pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def place_of(instance: Subject) -> str:
    """Return host and port, by which every balancer names it."""
    return urlsplit(instance.target.url).netloc


def threads_each(target: str, count: int) -> int | None:
    """Return the threads of each of so many instances that share this host's cores; None for the default.

    Engines on the CPU wait for each other in busy loops, so more threads than cores would cost them dearly.
    Only the embedded server's engine surely works on the CPU.
    """
    return max(1, len(os.sched_getaffinity(0)) // count) if target == "embedded" else None
