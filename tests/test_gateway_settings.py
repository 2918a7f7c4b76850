"""Options and YAML keys are one set of names, read alike, and what is wrong is named with its value."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from ollamalab.errors import SettingsError
from ollamalab.settings import BatchSettings, GatewaySettings, UpstreamSettings
from ollamalab.settings.files import changed_keys, gateway_keys, gateway_settings, parse_upstream
from ollamalab.settings.values import read_bytes, read_seconds

ONE = {"upstream": ["http://127.0.0.1:11434"]}


def yaml_file(folder: Path, text: str) -> Path:
    file = folder / "gateway.yaml"
    file.write_text(text)
    return file


def test_the_defaults_are_those_of_the_design():
    settings = gateway_settings(options=ONE)
    assert (settings.host, settings.port, settings.store) == ("127.0.0.1", 11435, "off")
    assert (settings.cache.policy, settings.cache.ttl_s, settings.cache.max_entries) == ("all", 300.0, 100)
    assert settings.cache.max_bytes == 256 * 2**20
    assert settings.queue.max_concurrent is None
    assert (settings.queue.max_queue, settings.queue.queue_timeout_s) == (100, 60.0)
    assert (settings.request_timeout_s, settings.load_timeout_s) == (120.0, 300.0)
    assert settings.limits.max_body_bytes == 64 * 2**20
    assert settings.batch.is_off
    assert not settings.is_admin


def test_a_file_sets_every_key_and_an_option_wins_over_it(tmp_path: Path):
    file = yaml_file(
        tmp_path,
        """
        upstream:
          - url: https://gpu1:11434
            name: gpu1
            weight: 3
            api_key_env: GPU1_KEY
            ca_file: ca.pem
        port: 12000
        cache: disk:/var/tmp/answers.db
        cache-policy: deterministic
        cache_ttl: 5m
        cache_bytes: 1GiB
        max_concurrent: 4
        queue_timeout: 30
        batch: 20ms
        admin: true
        max_body: 1MiB
        """,
    )
    settings = gateway_settings(file, {"port": 13000, "batch": "adaptive", "cache_ttl": None})
    (upstream,) = settings.upstreams
    assert (upstream.url, upstream.name, upstream.weight) == ("https://gpu1:11434", "gpu1", 3)
    assert (upstream.api_key_env, upstream.ca_file) == ("GPU1_KEY", Path("ca.pem"))
    assert (settings.port, settings.batch) == (13000, BatchSettings(is_adaptive=True))
    assert (settings.store, settings.cache.policy) == ("disk:/var/tmp/answers.db", "deterministic")
    assert (settings.cache.ttl_s, settings.cache.max_bytes) == (300.0, 2**30)
    assert (settings.queue.max_concurrent, settings.queue.queue_timeout_s) == (4, 30.0)
    assert settings.is_admin
    assert settings.limits.max_body_bytes == 2**20


@pytest.mark.parametrize("word", ["off", "no", "false"])
def test_what_yaml_reads_as_false_is_off(tmp_path: Path, word: str):
    """YAML turns a bare ``off`` into false, which is still what its writer meant."""
    settings = gateway_settings(yaml_file(tmp_path, f"upstream: h\ncache: {word}\nbatch: {word}\n"))
    assert settings.store == "off"
    assert settings.batch.is_off


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("upsteam: http://h", "unknown key 'upsteam'; did you mean 'upstream'?"),
        ("upstream: h\ncache_tll: 3", "unknown key 'cache_tll'; did you mean 'cache_ttl'?"),
        ("upstream: h\nport: many", "port must be a whole number, got 'many'"),
        ("upstream: h\nport: true", "port must be a whole number, got True"),
        ("upstream: h\nport: 70000", "port must be 0 to 65535, got 70000"),
        ("upstream: h\ncache_ttl: -1", "cache_ttl must be seconds or a duration such as 60 or 5m, got -1"),
        ("upstream: h\ncache_policy: some", ": cache_policy must be one of all, deterministic, got 'some'"),
        ("upstream: h\ncache-ttl: 0", "gateway.yaml: cache_ttl must be > 0 and finite, got 0.0"),
        ("upstream: h\nmax_concurrent: 0", "gateway.yaml: max_concurrent must be 1 to 1024, got 0"),
        ("upstream: h\nqueue_ageing: 0", "gateway.yaml: queue_ageing must be > 0 and finite, got 0.0"),
        ("upstream: h\nrequest_timeout: 0", "gateway.yaml: request_timeout must be > 0 and finite, got 0.0"),
        ("upstream: h\nwrite_timeout: 0", "gateway.yaml: write_timeout must be > 0, got 0.0"),
        ("upstream: h\nprobe_interval: 0", "gateway.yaml: probe_interval must be > 0 and finite, got 0.0"),
        ("upstream: h\nwarm_keep: now", "gateway.yaml: warm_keep must be off or auto, got 'now'"),
        ("upstream: h\nport: 1\nport: 2", "gateway.yaml, line 3: port is given twice; keep one"),
        ("max_queue: 1\nmax-queue: 2", "gateway.yaml, line 2: max_queue is given twice; keep one"),
        ("upstream:\n  - url: a\n    url: b", "gateway.yaml, line 3: url is given twice; keep one"),
        ("upstream: h\ncache_bytes: lots", "cache_bytes must be a size such as 256MiB, got 'lots'"),
        ("upstream: h\nqueue_share: 2", "queue_share must be a share from 0 to 1 such as 0.5, got 2"),
        ("upstream: h\nadmin: 1", "admin must be true or false, got 1"),
        ("upstream: h\nbatch: -3", "batch must be off, adaptive, a number of lines"),
        ("upstream: h\nmax_concurrent: none", "max_concurrent must be auto or a whole number"),
        ("upstream: h\nhost: [a]", "host must be a text, got ['a']"),
        ("upstream:\n  - weight: 3", "has no url"),
        (
            "upstream:\n  - url: h\n    wieght: 3",
            "upstream has an unknown key 'wieght'; did you mean 'weight'?",
        ),
        ("upstream:\n  - url: h\n    weight: 0", "weight must be a whole number from 1 to 1000, got 0"),
        ("upstream: 7", "upstream must be an address or keys such as url and weight, got 7"),
        ("- upstream", "must hold keys and values"),
        ("upstream: [", "line 2 is not YAML"),
        ("port: 1", "no upstream is given"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_value(tmp_path: Path, text: str, words: str):
    with pytest.raises(SettingsError, match=re.escape(words)):
        gateway_settings(yaml_file(tmp_path, text + "\n"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache_ttl": "0"}, "--cache-ttl must be > 0 and finite, got 0.0"),
        ({"cache_ttl": "soon"}, "--cache-ttl must be seconds or a duration such as 60 or 5m, got 'soon'"),
        ({"max_concurrent": "0"}, "--max-concurrent must be 1 to 1024, got 0"),
        ({"max_concurrent": "few"}, "--max-concurrent must be auto or a whole number from 1, got 'few'"),
        ({"port": "70000"}, "--port must be 0 to 65535, got 70000"),
        ({"batch": "0"}, "--batch must be off, adaptive, a number of lines from 1"),
        ({"warm_keep": "now"}, "--warm-keep must be off or auto, got 'now'"),
    ],
)
def test_what_is_wrong_on_a_command_line_is_named_as_it_is_written_there(
    tmp_path: Path, options: dict[str, object], words: str
):
    """Also where a file has the same key, whose value is not the one that counts."""
    file = yaml_file(tmp_path, "cache_ttl: 0\nmax_concurrent: 0\nport: -1\nbatch: x\nwarm_keep: x\n")
    good: dict[str, object] = {
        "cache_ttl": "60",
        "max_concurrent": "auto",
        "port": "1",
        "batch": "off",
        "warm_keep": "off",
    }
    with pytest.raises(SettingsError, match=re.escape(words)) as caught:
        gateway_settings(file, {**ONE, **good, **options})
    assert str(caught.value).startswith("--")


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"cannot read .*gateway.yaml: No such file"):
        gateway_settings(tmp_path / "gateway.yaml")


def test_an_upstream_is_written_with_its_weight_and_name():
    upstream = parse_upstream("http://10.0.0.3:11434,weight=3,name=big")
    assert upstream == UpstreamSettings(url="http://10.0.0.3:11434", weight=3, name="big")
    assert parse_upstream("gpu2").name == "gpu2:11434"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://h:1/ollama", "upstream 'http://h:1/ollama' has a path; write only http://host:port"),
        ("http://me:word@h:1", "leave credentials out of the address"),
        ("me:word@h", "leave credentials out of the address"),
        ("ftp://h", "http or https is needed"),
        ("http://h,wait=3", "'wait=3' is not weight=NUMBER or name=NAME"),
        ("http://h,weight=x", "upstream weight must be a whole number, got 'x'"),
        ("http://h,name=a b", "upstream name must be up to 63 letters"),
        ("", "upstream url must be a text, got ''"),
        ("http://me:word@h:port", "leave credentials out of the address"),
        ("http://h:port", "is not the address of a server"),
        ("http://[::1", "'http://[::1' is not the address of a server"),
        ("http://me:word@[h", "leave credentials out of the address"),
        ("http://me:wo,word@h", "leave credentials out of the address"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_the_reason(text: str, words: str):
    with pytest.raises(SettingsError, match=re.escape(words)) as caught:
        parse_upstream(text)
    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"api_key_file": Path("k"), "api_key_env": "K"}, "set api_key_file or api_key_env, not both"),
        ({"verify": False}, "ca_file and verify are for https"),
    ],
)
def test_settings_of_an_upstream_that_contradict_each_other_are_refused(
    options: dict[str, object], words: str
):
    with pytest.raises(SettingsError, match=words):
        UpstreamSettings(url="http://h", **options)  # type: ignore[arg-type]


def test_two_upstreams_of_one_name_or_address_are_refused():
    same = (UpstreamSettings(url="http://a", name="x"), UpstreamSettings(url="http://b", name="x"))
    with pytest.raises(SettingsError, match="two upstreams have the name x"):
        GatewaySettings(upstreams=same)
    with pytest.raises(SettingsError, match="two upstreams have the address http://a:80"):
        GatewaySettings(upstreams=(same[0], UpstreamSettings(url="http://a", name="y")))


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), (4096, 4096), ("64MiB", 2**26), ("1.5 kB", 1500), ("2GiB", 2**31)]
)
def test_sizes_are_read_with_their_units(text: object, size: int):
    assert read_bytes("size", text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("60", 60.0), (1.5, 1.5), ("250ms", 0.25), ("5m", 300.0), ("2h", 7200.0)]
)
def test_durations_are_read_with_their_units(text: object, seconds: float):
    assert read_seconds("time", text) == seconds


def test_every_key_can_be_written_with_dashes(tmp_path: Path):
    assert all(key == key.lower() and "-" not in key for key in gateway_keys())
    assert gateway_settings(yaml_file(tmp_path, "upstream: h\nmax-queue: 7\n")).queue.max_queue == 7


def test_keys_that_differ_are_named_as_the_file_has_them():
    before = gateway_settings(options={"upstream": ["a"], "cache": "memory"})
    after = gateway_settings(
        options={"upstream": ["a", "b"], "cache": "memory", "cache_ttl": "5m", "warm": ["m"], "admin": True}
    )
    assert changed_keys(before, before) == changed_keys(before, replace(before)) == ()
    assert changed_keys(before, after) == ("upstream", "warm", "admin")  # 5m is the default
    assert changed_keys(before, replace(after, port=1, upstreams=before.upstreams)) == (
        "port",
        "warm",
        "admin",
    )
