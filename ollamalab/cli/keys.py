"""The API key that a command sends, from the file that it is given."""

from __future__ import annotations

from pathlib import Path

from ollamalab.errors import SettingsError


def authorization(file: Path | None) -> dict[str, str]:
    """Return the header that carries the key of ``--api-key-file``; none without a file.

    Raises:
        SettingsError: It cannot be read, or holds no key that a header can carry.
    """
    return {} if file is None else {"Authorization": f"Bearer {_api_key(file)}"}


def _api_key(file: Path) -> str:
    """Return the key: the last word of the first line that is no comment, as in a key file of `serve`."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read --api-key-file {file}: {error}") from error
    words = next((line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")), [])
    if not words:
        raise SettingsError(f"--api-key-file {file} holds no key; write one line with it")
    if not (words[-1].isascii() and words[-1].isprintable()):
        raise SettingsError(f"--api-key-file {file}: a key is ASCII, as HTTP headers are; write another")
    return words[-1]
