"""Where a server of ours listens, who may reach it there, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import signal
import socket

import psutil

from ollamalab.errors import SettingsError
from ollamalab.protocol.origins import AccessRules

#: Its kernel takes no more, whatever the hard limit says.
_MOST_FILES_ON_MACOS = 10_240


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and does not listen yet.

    Args:
        host: An address of this machine, or a name for one.
        port: 0 takes a free one.

    Raises:
        SettingsError: Nobody can listen there.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
    except (OSError, OverflowError) as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error}; see --host and --port") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}; end what listens there or use another --port"
        ) from error
    return listener


def allow_open_files() -> None:
    """Let this process open as many files as it is allowed to ask for, as every program in Go does.

    The 1,024 that a shell gives are used up by 500 clients, each with a connection to its server; then no
    server can be reached, and all of them seem to be down.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (most, min(most, _MOST_FILES_ON_MACOS)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            return


def url_of(listener: socket.socket) -> str:
    """Return the URL of what listens on a bound socket."""
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def access_rules(listener: socket.socket, origins: tuple[str, ...] = ()) -> AccessRules:
    """Return which web pages and host names are answered on a bound socket of this machine.

    Args:
        listener: What the server listens on.
        origins: Pages allowed beside the default ones, as in ``OLLAMA_ORIGINS``.
    """
    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    return AccessRules(
        origins=origins,
        is_loopback=ipaddress.ip_address(listener.getsockname()[0]).is_loopback,
        host_names=frozenset({socket.gethostname().lower()}),
        addresses=frozenset(own),
    )


class StopSignal:
    """Waits for SIGINT or SIGTERM, from now on; on the running loop."""

    def __init__(self) -> None:
        self._came = asyncio.Event()
        self._is_interrupt = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._note, number)

    def _note(self, number: signal.Signals) -> None:
        self._is_interrupt = self._is_interrupt or number is signal.SIGINT
        self._came.set()

    async def wait(self) -> bool:
        """Return whether it was Ctrl-C, which has an exit status of its own."""
        await self._came.wait()
        return self._is_interrupt
