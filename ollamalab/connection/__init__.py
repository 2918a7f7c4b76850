"""HTTP out: a keep-alive pool of connections to one Ollama, as bytes.

An HTTP/1.1 client side of our own, on ``asyncio.Protocol`` and httptools (llhttp), because nothing
stands between a read and its reader: one write per request, one wake-up per read, no task of its own,
and each read stamped where it happens. A small answer costs it a third of the CPU time of aiohttp's
client, a stream of 128 lines three quarters (``tests/benchmarks/bench_connection.py``).
What it leaves out on purpose: redirects, cookies, decompression, proxies, HTTP/2.

==============  =========================================================
``ollama``      ``OllamaConnection``, the Upstream: send, send again, close
``pool``        who has which connection, and who waits for one
``wire``        one connection: bytes out, bytes in, one exchange at a time
``reply``       ``HttpReply``: what has come and its reader
``heads``       the head of a request as bytes (pure)
``failures``    what foreign errors become here (pure)
``settings``    limits and timeouts
==============  =========================================================
"""

from __future__ import annotations

from ollamalab.connection.ollama import OllamaConnection
from ollamalab.connection.reply import HttpReply
from ollamalab.connection.settings import ConnectionSettings

try:
    from uvloop import new_event_loop
except ImportError:  # no wheel for this platform
    from asyncio import new_event_loop

__all__ = ["ConnectionSettings", "HttpReply", "OllamaConnection", "new_event_loop"]
