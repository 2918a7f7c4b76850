"""How one Ollama is reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ollamalab.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class ConnectionSettings:
    """How one Ollama is reached.

    A gateway sets ``resend_stale``, to spare its users an error whenever a server restarts; an
    instrument does not, because what it measures is one request each (``failures.is_worth_sending_again``).
    """

    max_connections: int = 900  #: at once; leaves room under the usual 1,024 file descriptors
    connect_timeout_s: float = 5.0  #: to get a connection, the wait for a free one included
    progress_timeout_s: float = 300.0  #: without a byte, before the reply or inside it; inf for none
    idle_timeout_s: float = 30.0  #: an unused connection is closed; proxies close theirs after 60 s or more
    resend_stale: bool = False  #: send again, once, what crossed the close of an idle connection
    ca_file: str | Path | None = None  #: authorities to trust for https; None for the system's
    verify: bool = True  #: whether a certificate must be trusted and name the host

    def __post_init__(self) -> None:
        if self.max_connections < 1:
            raise SettingsError(f"max_connections must be 1 or more, got {self.max_connections!r}")
        for name in ("connect_timeout_s", "progress_timeout_s", "idle_timeout_s"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be > 0, got {getattr(self, name)!r}")
        if self.ca_file is not None and not self.verify:
            raise SettingsError(
                f"ca_file {str(self.ca_file)!r} has no effect with verify=False; leave one out"
            )
