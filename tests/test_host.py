"""Facts and samplers of this machine, read from the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ollamalab.host import HostSampler, ProcessSampler, ProcessTree, describe

#: Says "ready", then does one command per line: "spin" burns CPU until 0.3 s of it are used,
#: "write" syncs 1 MiB to a file, "child" starts a child of its own and says its pid.
WORKER = """
import os, subprocess, sys, time
print("ready", flush=True)
for line in sys.stdin:
    word, *rest = line.split()
    if word == "spin":
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
    if word == "write":
        with open(rest[0], "wb") as file:
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())
    if word == "child":
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    print(child.pid if word == "child" else "done", flush=True)
"""


class Worker:
    """A real process that does as it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def do(self, command: str) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@contextmanager
def working() -> Iterator[Worker]:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        try:
            yield Worker(process)
        finally:
            for pid in reversed(ProcessTree(process.pid).pids()):
                psutil.Process(pid).kill()


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def read(sampler: ProcessSampler) -> Mapping[str, float | None]:
    return sampler.read()["server"]


def number(value: float | None) -> float:
    assert value is not None
    return value


def test_the_machine_is_described_in_plain_json(tmp_path: Path) -> None:
    facts = describe(tmp_path)
    assert json.loads(json.dumps(facts)) == facts | {"load_average": list(facts["load_average"])}
    assert facts["cpu_model"]
    assert 1 <= facts["cpus_usable"] <= facts["cpus_logical"]
    assert facts["memory_bytes"] > 0
    assert facts["kernel"].startswith("Linux ")
    assert 0 < facts["disk"]["free_bytes"] <= facts["disk"]["total_bytes"]


def test_what_the_machine_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without clock, governor, control group or any tool to ask, the description still comes."""
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None)
    monkeypatch.setattr("ollamalab.host._text", lambda _: None)
    monkeypatch.setenv("PATH", "")
    facts = describe()
    for name in ("cpu_mhz", "cpu_max_mhz", "cpu_governor", "cpu_quota_cores", "memory_limit_bytes"):
        assert facts[name] is None
    assert facts["cpu_model"] == os.uname().machine


def test_control_group_limits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"/sys/fs/cgroup/cpu.max": "150000 100000", "/sys/fs/cgroup/memory.max": "1073741824"}
    monkeypatch.setattr("ollamalab.host._text", texts.get)
    facts = describe()
    assert facts["cpu_quota_cores"] == 1.5
    assert facts["memory_limit_bytes"] == 1 << 30


def test_the_host_has_no_cpu_share_before_the_second_reading() -> None:
    first = HostSampler().read()["host"]
    assert first["cpu_ratio"] is None
    assert first["cpu_steal_ratio"] is None
    assert number(first["memory_available_bytes"]) > 0


def test_the_hosts_cpu_share_is_between_0_and_1_and_sees_work() -> None:
    sampler = HostSampler()
    sampler.read()
    with working() as worker:
        worker.do("spin")
    assert 0 < number(sampler.read()["host"]["cpu_ratio"]) <= 1


def test_a_share_over_less_than_five_ticks_is_not_told_and_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window goes on growing until it can carry a share."""
    times = psutil.cpu_times()
    ticks = [
        times._replace(user=times.user + busy_s, idle=times.idle + idle_s)
        for busy_s, idle_s in ((0.0, 0.0), (0.01, 0.01), (0.5, 0.5))
    ]
    monkeypatch.setattr(psutil, "cpu_times", lambda: ticks.pop(0))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    sampler = HostSampler()
    shares = [sampler.read()["host"]["cpu_ratio"] for _ in range(3)]
    assert shares[:2] == [None, None]
    assert shares[2] == pytest.approx(0.5)


def test_a_host_without_disks_tells_no_storage_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: None)
    values = HostSampler().read()["host"]
    assert values["read_bytes"] is None
    assert values["written_bytes"] is None


def test_a_tree_is_the_process_and_its_descendants() -> None:
    with working() as worker:
        tree = ProcessTree(worker.pid)
        assert tree.pids() == (worker.pid,)
        child = int(worker.do("child"))
        assert tree.pids() == (worker.pid, child)
        assert set(ProcessTree(os.getpid()).pids()) >= {os.getpid(), worker.pid, child}
    assert tree.pids() == ()


def test_an_orphan_leaves_the_tree_of_its_dead_parent() -> None:
    """Who whose parent is, is remembered; but not beyond the parent's life."""
    with working() as worker:
        tree = ProcessTree(os.getpid())
        child = psutil.Process(int(worker.do("child")))
        assert child.pid in tree.pids()
        worker.process.kill()
        worker.process.wait()
        parent = child.parent()
        assert (child.pid in tree.pids()) == (parent is not None and parent.pid in tree.pids())
        child.kill()


def test_cpu_time_of_a_process_is_counted_in_cores() -> None:
    clock = Clock()
    with working() as worker:
        sampler = ProcessSampler(lambda: [worker.pid], clock=clock)
        before = read(sampler)
        worker.do("spin")
        clock.now_s = 0.1  # as if three cores had been busy
        after = read(sampler)
    spent_s = number(after["cpu_s"]) - number(before["cpu_s"])
    assert before["cpu_ratio"] is None
    assert spent_s >= 0.29
    assert after["cpu_ratio"] == pytest.approx(spent_s / 0.1)
    assert number(after["rss_bytes"]) > 1 << 20


def test_storage_bytes_are_the_kernels_count(tmp_path: Path) -> None:
    with working() as worker:
        worker.do(f"write {tmp_path / 'file'}")
        values = read(ProcessSampler(lambda: [worker.pid]))
        storage = psutil.Process(worker.pid).io_counters()
    assert values["read_bytes"] == storage.read_bytes
    assert values["written_bytes"] == storage.write_bytes


def test_processes_come_and_go_and_the_counters_never_fall() -> None:
    clock = Clock()
    members = []
    with working() as first:
        members.append(first.pid)
        sampler = ProcessSampler(lambda: members, clock=clock)
        assert read(sampler)["processes"] == 1
        with working() as second:
            members.append(second.pid)
            second.do("spin")
            clock.now_s += 1
            both = read(sampler)
            assert both["processes"] == 2
        clock.now_s += 0.5
        one = read(sampler)
    assert one["processes"] == 1
    assert number(one["cpu_s"]) >= number(both["cpu_s"])
    assert number(one["cpu_ratio"]) >= 0


def test_a_new_process_is_found_within_a_second_of_sampling() -> None:
    """Listing a tree is dear, so it is not done in every round."""
    clock = Clock()
    listings = 0

    def pids() -> list[int]:
        nonlocal listings
        listings += 1
        return [os.getpid()]

    sampler = ProcessSampler(pids, clock=clock)
    for _ in range(9):
        sampler.read()
        clock.now_s += 0.25
    assert listings == 3


def test_nothing_alive_is_no_processes_and_no_values() -> None:
    with working() as worker:
        pass
    values = read(ProcessSampler(lambda: [worker.pid]))
    assert values["processes"] == 0
    assert {value for name, value in values.items() if name != "processes"} == {None}


def test_a_zombie_is_not_alive() -> None:
    """A dead child that its parent has not reaped has no memory and never changes."""
    with working() as worker:
        child = psutil.Process(int(worker.do("child")))
        sampler = ProcessSampler(lambda: [worker.pid, child.pid])
        assert read(sampler)["processes"] == 2
        child.kill()
        while child.status() != psutil.STATUS_ZOMBIE:
            pass
        assert read(sampler)["processes"] == 1


def test_storage_bytes_that_may_not_be_read_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """``/proc/PID/io`` belongs to the owner; the rest is still told."""

    def refuse(_: psutil.Process) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "io_counters", refuse)
    values = read(ProcessSampler(lambda: [os.getpid()]))
    assert values["read_bytes"] is None
    assert values["written_bytes"] is None
    assert number(values["cpu_s"]) > 0
