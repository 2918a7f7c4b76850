"""Addresses of servers, as people write them."""

from __future__ import annotations

from urllib.parse import urlsplit

from ollamalab.errors import SettingsError

OLLAMA_PORT = 11434

_PORTS = {"http": 80, "https": 443}


def server_url(text: str) -> str:
    """Return the base URL of an Ollama server, in full and without a slash at its end.

    As ``OLLAMA_HOST`` is read: without a scheme it is http on port 11434, with one the port is the
    scheme's own; a path is kept, for servers behind a proxy.

    Args:
        text: "gpu2", "127.0.0.1:11434", "http://gpu2:11434", "https://host/ollama".

    Raises:
        SettingsError: Not such an address, or with a password in it (it would end up in reports).
    """
    example = "write for example http://127.0.0.1:11434"
    cleaned = text.strip()
    has_scheme = "://" in cleaned
    try:
        parts = urlsplit(cleaned if has_scheme else f"http://{cleaned}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        if "@" in text:  # what the error shows of it may be a part of a password
            raise SettingsError(f"this is not the address of a server; {example}") from None
        raise SettingsError(f"{text!r} is not the address of a server ({error}); {example}") from error
    if parts.username is not None or parts.query or parts.fragment:
        raise SettingsError(f"address of {host}: leave out user name, query and fragment; {example}")
    if parts.scheme not in _PORTS:
        raise SettingsError(f"{text!r} is not the address of a server: http or https is needed; {example}")
    if not host or any(mark.isspace() for mark in cleaned):
        raise SettingsError(f"{text!r} is not the address of a server; {example}")
    if port is None:
        port = _PORTS[parts.scheme] if has_scheme else OLLAMA_PORT
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port}{parts.path.rstrip('/')}"
