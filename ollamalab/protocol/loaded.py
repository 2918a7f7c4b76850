"""What ``GET /api/ps`` says: the models in memory, and until when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec

from ollamalab.errors import BadReply, SettingsError
from ollamalab.protocol.names import parse_name


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """One model in memory.

    Attributes:
        name: As the server shows it.
        key: Equal for every spelling of the model (``ModelName.key``).
        expires_unix_s: When it will be unloaded if nothing more comes, by the *server's* wall clock; far in
            the future for "for ever", out of date while a request runs. None if the server does not say.
        size_bytes: Memory in all.
        size_vram_bytes: Of that, on GPUs.
        context_tokens: Per slot; None if the server does not say.
    """

    name: str
    key: str
    expires_unix_s: float | None
    size_bytes: int
    size_vram_bytes: int
    context_tokens: int | None

    @property
    def memory_bytes(self) -> int:
        """What it takes of the memory that is scarce: the GPUs', or the machine's if it is on none."""
        return self.size_vram_bytes or self.size_bytes


class _Entry(msgspec.Struct):
    name: str
    expires_at: str | None = None
    size: int = 0
    size_vram: int = 0
    context_length: int | None = None


class _Listing(msgspec.Struct):
    models: list[_Entry] | None = None


def loaded_models(body: bytes) -> tuple[LoadedModel, ...]:
    """Return the models of an answer to ``GET /api/ps``, in its order.

    Raises:
        BadReply: It is not such an answer.
    """
    try:
        entries = msgspec.json.decode(body, type=_Listing).models or []
        return tuple(_loaded(entry) for entry in entries)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, SettingsError) as error:
        raise BadReply(f"/api/ps answered what Ollama would not ({error})") from error


def _loaded(entry: _Entry) -> LoadedModel:
    expires = entry.expires_at
    return LoadedModel(
        name=entry.name,
        key=parse_name(entry.name).key,
        expires_unix_s=None if expires is None else datetime.fromisoformat(expires).timestamp(),
        size_bytes=entry.size,
        size_vram_bytes=entry.size_vram,
        context_tokens=entry.context_length,
    )
