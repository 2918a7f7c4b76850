"""The process that listens at an address, and the engines that it has started."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from ollamalab.doctor.inventory import Engine, ServerProcess, Unread
from ollamalab.errors import UpstreamError
from ollamalab.hosts.slots import embedded_slots, llama_server_slots

#: What our own streamed request asks for: by it a slot is known whose last request was ours and says nothing.
PROBE_TOKENS = 47

_AS_ROOT = "run `ollamalab doctor` as that user or as root"

#: llama.cpp's backends lie in folders of these names.
_BACKEND = re.compile(r"/(cuda_[\w]+|rocm[\w]*|vulkan)/lib")


def is_local(url: str) -> bool:
    """Whether the host of an address is this machine."""
    host = urlsplit(url).hostname or ""
    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return any(address in own or address.startswith("127.") or address == "::1" for address in found)


def find_listener(url: str) -> ServerProcess | Unread:
    """Return the Ollama, or embedded server, that listens at an address of this machine."""
    port = urlsplit(url).port
    listening = [
        connection
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    ]
    if not listening:
        return Unread(f"no process of this machine listens on port {port}")
    pid = listening[0].pid
    if pid is None:
        return Unread(f"the process on port {port} belongs to another user; {_AS_ROOT}")
    try:
        process = psutil.Process(pid)
        name, command = process.name(), process.cmdline()
        is_server = name == "ollama" or ("ollamalab" in " ".join(command) and "embedded" in command)
        if not is_server:
            return Unread(
                f"{name} (pid {pid}) listens on port {port}, not Ollama; ask behind it, where Ollama runs"
            )
        return ServerProcess(pid=pid, name=name, environment=process.environ())
    except psutil.Error:
        return Unread(f"the environment of pid {pid} belongs to another user; {_AS_ROOT}")


def find_engines(server: ServerProcess, url: str) -> tuple[Engine, ...] | Unread:
    """Return the engines of a server on this machine; blocks."""
    if server.name != "ollama":
        try:
            return tuple(_engine(None, name, slots) for name, slots in embedded_slots(url).items())
        except UpstreamError as error:
            return Unread(str(error))
    engines = []
    for process in psutil.Process(server.pid).children(recursive=True):
        try:
            program, *arguments = process.cmdline() or [""]
            if Path(program).name != "llama-server" or not {"--port", "--model"} <= set(arguments):
                continue
            file = arguments[arguments.index("--model") + 1]
            slots = llama_server_slots(f"http://127.0.0.1:{arguments[arguments.index('--port') + 1]}")
            engines.append(_engine(file, None, slots, libraries=_backends(process)))
        except psutil.AccessDenied:
            return Unread(f"the engines of pid {server.pid} belong to another user; {_AS_ROOT}")
        except (psutil.NoSuchProcess, UpstreamError):
            continue  # it is loading its model, or has just been unloaded
    return tuple(engines)


def _engine(
    file: str | None,
    model: str | None,
    slots: Sequence[Mapping[str, Any]],
    libraries: tuple[str, ...] = (),
) -> Engine:
    """Return an engine by what llama.cpp's ``/slots`` tells of it."""
    limits = {slot["id"]: (slot.get("params") or {}).get("n_predict", -1) for slot in slots}
    used = [slot for slot in slots if slot.get("n_prompt_tokens") and limits[slot["id"]] != PROBE_TOKENS]
    answers = [limits[slot["id"]] for slot in used]
    return Engine(
        model_file=file,
        model=model,
        slots=len(slots),
        context_tokens=slots[0].get("n_ctx") if slots else None,
        prompt_tokens=max((slot["n_prompt_tokens"] for slot in used), default=None),
        answer_tokens=None if not answers or min(answers) < 0 else max(answers),
        libraries=libraries,
    )


def _backends(process: psutil.Process) -> tuple[str, ...]:
    """Return the backends whose libraries a process has mapped; none if it may not be asked."""
    try:
        paths = {mapped.path for mapped in process.memory_maps()}
    except psutil.Error:
        return ()
    return tuple(sorted({found[1] for path in paths if (found := _BACKEND.search(path))}))
