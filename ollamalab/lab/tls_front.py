"""A front that terminates TLS before a plain server, as proxies do: its bytes pass through unread."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from ollamalab.errors import TargetError

_HOST = "127.0.0.1"
_CHUNK_BYTES = 64 * 1024


def why_no_front(url: str) -> str | None:
    """Return why a server cannot be put behind TLS here; None if it can."""
    if urlsplit(url).scheme != "http":
        return "the server speaks TLS itself, so every request here goes through it"
    if shutil.which("openssl") is None:
        return "no openssl on PATH to make a certificate with"
    return None


@asynccontextmanager
async def tls_front(url: str) -> AsyncIterator[tuple[str, ssl.SSLContext]]:
    """Open a front on a free port; give its address and a context that trusts it.

    Its certificate is made for it: an elliptic key, as most servers have today, valid for a day.

    Args:
        url: A server for which ``why_no_front`` has no reason.

    Raises:
        TargetError: No certificate could be made.
    """
    parts = urlsplit(url)
    open_now: set[asyncio.Task[None]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_now.add(task)
        task.add_done_callback(open_now.discard)
        try:
            there_reader, there_writer = await asyncio.open_connection(parts.hostname, parts.port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))

    with tempfile.TemporaryDirectory(prefix="ollamalab-tls-") as folder:
        certificate = await asyncio.to_thread(_make_certificate, Path(folder))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        trust = ssl.create_default_context(cafile=certificate)
    server = await asyncio.start_server(pass_on, _HOST, 0, ssl=context)
    async with server:
        yield f"https://{_HOST}:{server.sockets[0].getsockname()[1]}", trust
        server.close()
        await asyncio.gather(*open_now)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until their end, then close the other side."""
    with suppress(OSError):  # either side may hang up; ssl.SSLError is one too
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def _make_certificate(folder: Path) -> Path:
    """Return a file with a certificate for our address and its key."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", "/CN=ollamalab"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-addext", f"subjectAltName=IP:{_HOST}", "-keyout", str(key), "-out", str(certificate)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        said = made.stderr.strip().splitlines() or ["nothing"]
        raise TargetError(f"openssl could not make a certificate; it last said: {said[-1]}")
    certificate.write_text(certificate.read_text() + key.read_text())
    return certificate
