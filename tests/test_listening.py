"""Where servers listen, what they say of it, and who may reach them there."""

from __future__ import annotations

import socket

import pytest

from ollamalab.errors import SettingsError
from ollamalab.listening import access_rules, bound_socket, url_of


def test_a_free_port_is_taken_and_shown() -> None:
    with bound_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"


def test_an_address_of_version_6_has_brackets() -> None:
    try:
        listener = bound_socket("::1", 0)
    except SettingsError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    with listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_a_port_in_use_is_told_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}: Address already in use; .*--port"):
            bound_socket("127.0.0.1", port)


def test_a_host_that_is_none_is_named() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen on host\.invalid:0"):
        bound_socket("host.invalid", 0)


def test_a_loopback_server_answers_to_its_own_names_only() -> None:
    with bound_socket("127.0.0.1", 0) as listener:
        rules = access_rules(listener, ("http://friend.example",))
    assert rules.allows_host("localhost:11435")
    assert rules.allows_host(socket.gethostname())
    assert not rules.allows_host("evil.example")
    assert rules.cors_headers("http://friend.example", "localhost")
    assert rules.cors_headers("http://evil.example", "localhost") is None


def test_a_server_on_all_addresses_answers_to_any_host_but_to_no_foreign_page() -> None:
    with bound_socket("0.0.0.0", 0) as listener:
        rules = access_rules(listener)
    assert rules.allows_host("gateway.example")
    assert rules.cors_headers("http://evil.example", "gateway.example") is None
