"""What to set, each line with its evidence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ollamalab import __version__
from ollamalab.settings import GatewaySettings


@dataclass(frozen=True, kw_only=True)
class Line:
    """One setting.

    Attributes:
        name: An environment variable, or a key of the gateway's file.
        value: As a person would write it; for the gateway whatever its YAML holds.
        why: Its evidence, one comment line each.
    """

    name: str
    value: object
    why: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything that the files are made from.

    Attributes:
        source: Where it comes from, in a few words.
        about: What a reader must know of that source, one comment line each.
        server: Environment variables of ``ollama serve``.
        gateway: Keys of the gateway's file, ``upstream`` included.
        settings: What these keys mean, with the defaults of all others.
        left: Findings that no file can carry, and settings that were measured and do not pay.
        gpus: GPUs of the host; None if not known.
        version: Of the Ollama that was measured; "" if it was none.
        first_byte_s: Mean time to first token that was measured under load; None if it was not.
    """

    source: str
    about: tuple[str, ...]
    server: tuple[Line, ...]
    gateway: tuple[Line, ...]
    settings: GatewaySettings
    left: tuple[str, ...] = ()
    gpus: int | None = None
    version: str = ""
    first_byte_s: float | None = None

    @property
    def longest_silence_s(self) -> float:
        """How long the gateway may be silent and well: a wait in its queue, then a load or slow progress."""
        settings = self.settings
        return settings.queue.queue_timeout_s + max(settings.load_timeout_s, settings.request_timeout_s)


def heading(profile: Profile, *lines: str) -> list[str]:
    """Return the first comment lines of a file."""
    return comments((f"Written by ollamalab {__version__} from {profile.source}.", *profile.about, *lines))


def comments(lines: Iterable[str], *, indent: str = "") -> list[str]:
    """Return comment lines, each on one line whatever it holds."""
    return [f"{indent}# {' '.join(line.split())}" for line in lines]
