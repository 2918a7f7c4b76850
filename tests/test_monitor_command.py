"""``ollamalab monitor``: what it prints, how it ends, and how it refuses bad input."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from gpu_machine import MACHINE, nvidia_smi, recording, told

from ollamalab.gpu import PrometheusSampler

COMMAND = [sys.executable, "-m", "ollamalab", "monitor"]


@contextmanager
def running(*flags: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run it without a terminal."""
    env = os.environ | environment
    with subprocess.Popen([*COMMAND, *flags], stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    yield from process.stdout


def test_a_remote_run_reads_what_it_serves(tmp_path: Path) -> None:
    """The whole way: a command that serves, and our own source that scrapes it."""
    path = recording(tmp_path / "a.samples.parquet", seconds=60)
    with running("--gpu", str(path), "--serve", "0") as process:
        output = lines(process)
        url = next(output).removeprefix("metrics at ").strip()
        while "gpu0 85 %" not in next(output):
            pass
        found = PrometheusSampler(url).read()["gpu0"]
        assert told(found) == pytest.approx(MACHINE)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130


def test_without_a_gpu_and_without_its_server_it_goes_on() -> None:
    with running("http://127.0.0.1:9", "--interval", "0.1", "--gpu", "none") as process:
        output = lines(process)
        while "Connection refused); asked again and again" not in (shown := next(output)):
            pass
        assert "no GPU: none was to be watched" in shown
        next(output)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


@contextmanager
def guarded(key: str, page: str) -> Iterator[str]:
    """Serve a server that tells version and models to whoever has the key; its other pages lead away."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers = {"/api/ps": b'{"models": []}', "/api/version": b'{"version": "9.8.7"}'}
            is_known = self.headers["Authorization"] == f"Bearer {key}"
            body = answers.get(self.path, b"{}")
            self.send_response(200 if is_known and self.path in answers else 302 if is_known else 401)
            self.send_header("Location", page)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_guarded_server_is_watched_with_a_key_that_goes_nowhere_else(tmp_path: Path) -> None:
    """A redirect leads to a server that would know the key, had it been sent along: it answers 401."""
    keys = tmp_path / "keys"
    keys.write_text("# of the gateway\nme secret-of-mine\n")
    flags = ("--interval", "0.1", "--gpu", "none")
    with guarded("secret-of-mine", "") as other, guarded("secret-of-mine", f"{other}/api/version") as url:
        with running(url, *flags, "--api-key-file", str(keys)) as process:
            output = lines(process)
            while "Ollama does not tell" not in (shown := next(output)):
                assert "secret" not in shown
        with running(url, *flags) as process:
            output = lines(process)
            while "401" not in next(output):
                pass


def test_gpus_of_nvidia_smi_are_shown_and_its_process_ends_with_ours(tmp_path: Path) -> None:
    path = f"{Path(nvidia_smi(tmp_path)).parent}:{os.environ['PATH']}"
    with running("--gpu", "nvidia-smi", PATH=path) as process:
        while "gpu0 85 % 20.0/80.0 GiB 412 W 61 °C" not in next(lines(process)):
            pass
        process.kill()
    # The lifeline closed with it; nobody is left to write.
    assert process.returncode == -signal.SIGKILL
    wait_until_gone(str(tmp_path))


def wait_until_gone(words: str) -> None:
    """Wait until no process has these words in its command line; nothing tells when."""
    import psutil

    while any(words in " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])):
        pass


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    shell = f"{' '.join(COMMAND)} --gpu none --interval 0.1 | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


def test_on_a_terminal_it_draws_over_itself(tmp_path: Path) -> None:
    ours, its = pty.openpty()
    path = recording(tmp_path / "a.json", seconds=60)
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "118", "LINES": "30"}
    with subprocess.Popen([*COMMAND, "--gpu", str(path)], stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        text = b""
        while text.count(b"SM clock") < 2:
            assert select.select([ours], [], [], 60)[0]
            text += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        while select.select([ours], [], [], 60)[0]:
            try:
                text += os.read(ours, 4096)
            except OSError:  # it has closed the terminal
                break
        assert process.wait() == 130
    os.close(ours)
    shown = text.decode()
    assert "software power cap" in shown
    assert "Ctrl-C ends" in shown
    assert "\x1b[2K" in shown  # lines are erased, not scrolled


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--interval", "0"), "--interval must be at least 0.1 s, got 0"),
        (("--interval", "nan"), "--interval must be at least 0.1 s"),
        (("--gpu", "nonsense"), "'nonsense' is no source of GPU samples; give auto"),
        (("--serve", "http"), "--serve 'http' is no port"),
        (("ftp://gpu2",), "http or https is needed"),
        (("--gpu", "http://"), "is not the address of a page of metrics"),
        (("--api-key-file", "/absent.key"), "cannot read --api-key-file /absent.key"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags: tuple[str, ...], words: str) -> None:
    refused(flags, words)


def refused(flags: tuple[str, ...], words: str, **environment: str) -> None:
    env = os.environ | environment
    done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("ollamalab: ")
    assert words in done.stderr


def test_a_file_that_is_no_recording_is_one_line_and_status_2(tmp_path: Path) -> None:
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"PAR1 but not really")
    refused(("--gpu", str(path)), "is no recording of GPU samples")


def test_a_port_that_is_taken_is_one_line_and_status_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(
            ("--gpu", "none", "--serve", str(port)), f"cannot listen on 127.0.0.1:{port} (Address already"
        )


def test_an_nvidia_smi_that_cannot_reach_the_driver_is_one_line_and_status_2(tmp_path: Path) -> None:
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    path = f"{Path(nvidia_smi(tmp_path, lines=0, then=said)).parent}:{os.environ['PATH']}"
    refused(("--gpu", "nvidia-smi"), f"nvidia-smi ended with status 9: {said}", PATH=path)


def test_gpus_asked_for_by_index_must_exist() -> None:
    """Without a driver the reason is that; with one, which there are."""
    refused(("--gpu", "99"), "GPU")
