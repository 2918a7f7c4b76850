"""API keys: who holds which, read from a file."""

from __future__ import annotations

import hashlib
import logging
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from ollamalab.errors import SettingsError

logger = logging.getLogger(__name__)

_SCHEME = "bearer "
_DIGEST_BYTES = 32
_LEAST_CHARACTERS = 8


class KeyRing:
    """Knows the holders of keys, and none of the keys.

    Only keyed digests are kept, under a secret of this process. A lookup by digest takes time that
    depends on the digest, which tells nobody anything about a key: the comparison is constant in time
    in all that a client can choose.

    Args:
        holders: Key to the name of who holds it.
    """

    def __init__(self, holders: Mapping[str, str]) -> None:
        self._secret = secrets.token_bytes(_DIGEST_BYTES)
        self._names = {self._digest(key): name for key, name in holders.items()}

    @classmethod
    def read(cls, file: Path) -> Self:
        """Return the keys of a file: ``name key`` on each line; ``#`` begins a comment line.

        Raises:
            SettingsError: It cannot be read or a line is no such pair; the line's number, never a key.
        """
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            is_open = file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise SettingsError(f"cannot read the key file {file}: {reason}") from error
        holders: dict[str, str] = {}
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            problem = _problem(words, holders)
            if problem:
                raise SettingsError(f"{file}, line {number}: {problem}")
            name, key = words
            holders[key] = name
        if not holders:
            raise SettingsError(f"the key file {file} has no keys; write one `name key` per line")
        if is_open:
            logger.warning("event=key_file_readable_by_others file=%s hint='chmod 600'", file)
        return cls(holders)

    def take(self, other: KeyRing) -> None:
        """Know what another one knows, and nothing else."""
        self._secret, self._names = other._secret, other._names

    def holder(self, authorization: str) -> str | None:
        """Return the name of the key in an ``Authorization`` header; None if it is not known."""
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            return None
        return self._names.get(self._digest(authorization[len(_SCHEME) :].strip()))

    def __len__(self) -> int:
        """Return how many keys there are."""
        return len(self._names)

    def _digest(self, key: str) -> bytes:
        data = key.encode("utf-8", errors="surrogateescape")
        return hashlib.blake2b(data, key=self._secret, digest_size=_DIGEST_BYTES).digest()


def _problem(words: list[str], holders: Mapping[str, str]) -> str | None:
    """Return what is wrong with a line, without a word of it: its two may be the wrong way round."""
    if len(words) != 2:
        return "a line must be `name key`, two words"
    name, key = words
    if len(key) < _LEAST_CHARACTERS:
        return f"the key, the second word, is too short; use {_LEAST_CHARACTERS} characters or more"
    if name in holders.values():
        return "another line has this name already"
    return "another line has this key already" if key in holders else None
