"""One GET for JSON: what comes back, and what each failure becomes."""

from __future__ import annotations

import socket
import threading

import pytest
from ollama_standin import free_url, serving

from ollamalab.errors import BadReply, UpstreamTimeout, UpstreamUnavailable
from ollamalab.hosts.web import get_json


def test_a_refused_connection_is_unavailable() -> None:
    url = free_url()
    with pytest.raises(UpstreamUnavailable, match="Connection refused") as caught:
        get_json(url, timeout_s=5)
    assert caught.value.url == url


def test_a_name_that_is_not_known_is_unavailable() -> None:
    with pytest.raises(UpstreamUnavailable, match=r"cannot connect to http://no-such-host\.invalid"):
        get_json("http://no-such-host.invalid/", timeout_s=5)


def test_an_answer_that_does_not_come_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(UpstreamTimeout) as caught:
            get_json(url, timeout_s=0.05)
    assert caught.value.after_s == 0.05


@pytest.mark.parametrize("answer", [b"HTTP/1.0 200 OK\r\n\r\n<p>", b"SSH-2.0-OpenSSH\r\n", b""])
def test_an_answer_that_is_not_json_is_a_bad_reply(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=_answer_once, args=(server, answer))
        answering.start()
        with pytest.raises(BadReply, match="did not answer with JSON"):
            get_json(f"http://127.0.0.1:{server.getsockname()[1]}/", timeout_s=5)
        answering.join()


def _answer_once(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


def test_an_error_status_is_a_bad_reply() -> None:
    with serving({}) as url, pytest.raises(BadReply, match="/x answered 404"):
        get_json(f"{url}/x", timeout_s=5)


def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", free_url())
    with serving({"/x": 1}) as url:
        assert get_json(f"{url}/x", timeout_s=5) == 1
