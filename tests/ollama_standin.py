"""What ``ollama serve`` is to the outside, for tests of starting and ending it: a script to put on PATH.

It listens where ``OLLAMA_HOST`` says, says so in Ollama's words, tells its version, its models and
(unlike Ollama) its environment, and runs one engine: a process named ``llama-server`` that tells its
slots and does not end by itself. ``STANDIN`` makes it fail: "crash" before it listens, "mute" never
says where, "deaf" says so but does not answer. ``STANDIN_KNOWS`` lists variables that it
names at its start, as Ollama does; without it, it names none.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SLOTS = [
    {"id": 0, "is_processing": True, "next_token": [{"n_decoded": 7}]},
    {"id": 1, "is_processing": True, "next_token": [{"n_decoded": 0}]},
    {"id": 2, "is_processing": False},
]
MODELS = [
    {"name": "smollm2:135m", "digest": "b1" * 32, "size": 98, "details": {"quantization_level": "Q4_1"}}
]


def serve(answers: Mapping[str, Any], port: int = 0) -> ThreadingHTTPServer:
    """Return a server that answers GETs of these paths with JSON, or text as it is, and others with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path in answers
            answer = answers[self.path] if found else "404 page not found"
            body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


@contextmanager
def serving(answers: Mapping[str, Any]) -> Iterator[str]:
    """Run a server that is not ours to change; give its URL."""
    with serve(answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def free_url() -> str:
    """Return a URL on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def engine() -> None:
    """Be a ``llama-server``; its port is the last argument."""
    with serve({"/slots": SLOTS}, int(sys.argv[-1])) as server:
        server.serve_forever()


def start_engine() -> subprocess.Popen[bytes]:
    """Start an engine and return once it listens."""
    link = Path(tempfile.mkdtemp()) / "llama-server"
    link.symlink_to(sys.executable)
    with serve({}) as probe:
        port = probe.server_port
    code = "import sys; from ollama_standin import engine; engine()"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen([link, "-c", code, "--model", "blob", "--port", str(port)], env=environment)


def main() -> None:
    """Be ``ollama serve``."""
    behaviour = os.environ.get("STANDIN", "")
    print("time=now level=INFO msg=starting", flush=True)  # noqa: T201
    if knows := os.environ.get("STANDIN_KNOWS"):
        named = " ".join(f"{name}:{os.environ.get(name, '')}" for name in knows.split())
        print(f'time=now level=INFO msg="server config" env="map[{named}]"', flush=True)  # noqa: T201
    if behaviour == "crash":
        print("smoke is seen", flush=True)  # noqa: T201
        sys.exit("Error: the disk is on fire")
    if behaviour == "mute":
        threading.Event().wait()
    port = int(os.environ["OLLAMA_HOST"].rpartition(":")[2])
    answers: dict[str, Any] = {
        "/api/version": {"version": os.environ.get("STANDIN_VERSION", "0.0.0-standin")},
        "/api/tags": {"models": MODELS},
        "/environment": dict(os.environ),
    }
    with serve(answers, port) as server, start_engine():
        print(f'msg="Listening on 127.0.0.1:{server.server_port} (version 0.0.0)"', flush=True)  # noqa: T201
        if behaviour == "deaf":
            threading.Event().wait()
        server.serve_forever()


if __name__ == "__main__":
    main()
