"""This machine: what it is, and samplers of it and of process trees on it.

What the machine does not tell is None: many virtual machines have no clock governor, containers hide
disks, and ``/proc/PID/io`` belongs to the process's owner.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

#: CPU times tick in 10 ms; a share over fewer than five ticks is mostly rounding.
_LEAST_WINDOW_S = 0.05

#: Listing a process tree takes about as long as all else that is read of it, so not in every round.
_RELIST_S = 1.0


def describe(folder: Path | None = None) -> dict[str, Any]:
    """Return the facts of this machine that can change a number; goes into the manifest.

    Args:
        folder: Whose disk to describe; default the working directory.

    Returns:
        ``cpu_model``, ``cpus_logical``, ``cpus_physical``, ``cpus_usable`` (affinity), ``cpu_quota_cores``
        and ``memory_limit_bytes`` (control group), ``cpu_mhz`` (now), ``cpu_max_mhz``, ``cpu_governor``,
        ``memory_bytes``, ``swap_bytes``, ``kernel``, ``os``, ``python``, ``virtualisation``,
        ``load_average`` (1, 5 and 15 minutes) and ``disk``; plain JSON values, None where not told.
    """
    frequency = psutil.cpu_freq()
    quota, _, period = (_text("/sys/fs/cgroup/cpu.max") or "max").partition(" ")
    limit = _text("/sys/fs/cgroup/memory.max") or "max"
    return {
        "cpu_model": _cpu_model(),
        "cpus_logical": psutil.cpu_count(),
        "cpus_physical": psutil.cpu_count(logical=False),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "cpu_quota_cores": None if quota == "max" else int(quota) / int(period),
        "cpu_mhz": frequency.current if frequency else None,
        "cpu_max_mhz": frequency.max or None if frequency else None,
        "cpu_governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_limit_bytes": None if limit == "max" else int(limit),
        "swap_bytes": psutil.swap_memory().total,
        "kernel": f"{platform.system()} {platform.release()}",
        "os": _os_name(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "virtualisation": _virtualisation(),
        "load_average": os.getloadavg(),
        "disk": _disk(folder or Path.cwd()),
    }


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _cpu_model() -> str:
    lines = (_text("/proc/cpuinfo") or "").splitlines()
    # Arm has no "model name" line; the architecture is better than nothing.
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _os_name() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _virtualisation() -> str | None:
    """Return "kvm", "docker", ...; "none" on bare metal, None where unknown."""
    if detector := shutil.which("systemd-detect-virt"):
        answer = subprocess.run([detector], capture_output=True, text=True, timeout=5, check=False)
        return answer.stdout.strip() or None
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return "container"
    return "hypervisor" if " hypervisor " in (_text("/proc/cpuinfo") or "") else None


def _disk(folder: Path) -> dict[str, Any]:
    """Return size, free bytes, file system and device of the disk that holds a folder."""
    usage = shutil.disk_usage(folder)
    mounts = {Path(mount.mountpoint): mount for mount in psutil.disk_partitions(all=True)}
    resolved = folder.resolve()
    mount = next((mounts[path] for path in (resolved, *resolved.parents) if path in mounts), None)
    return {
        "total_bytes": usage.total,
        "free_bytes": usage.free,
        "filesystem": mount.fstype if mount else None,
        "device": mount.device if mount else None,
    }


class HostSampler:
    """Reads CPU, memory and storage of the whole machine; source "host".

    ``cpu_ratio`` is the share of all CPUs that was busy since the previous reading (waiting for storage
    is not busy) and ``cpu_steal_ratio`` the share that the hypervisor gave to others; both None in the first
    reading and over less than 50 ms. ``memory_used_bytes`` is total - available, ``swap_used_bytes`` as it
    says, ``read_bytes`` and ``written_bytes`` count storage since boot, ``load_1m`` is the load average.
    Same figures: ``top``, ``free -b``, ``/proc/diskstats``.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._before: Any = None

    def read(self) -> Mapping[str, Mapping[str, float | None]]:
        """Return the values of "host", now."""
        memory = psutil.virtual_memory()
        disks = psutil.disk_io_counters()
        busy, steal = self._cpu_ratios()
        return {
            "host": {
                "cpu_ratio": busy,
                "cpu_steal_ratio": steal,
                "memory_used_bytes": memory.total - memory.available,
                "memory_available_bytes": memory.available,
                "swap_used_bytes": psutil.swap_memory().used,
                "read_bytes": disks.read_bytes if disks else None,
                "written_bytes": disks.write_bytes if disks else None,
                "load_1m": os.getloadavg()[0],
            }
        }

    def _cpu_ratios(self) -> tuple[float | None, float | None]:
        now = psutil.cpu_times()
        if self._before is None:
            self._before = now
            return None, None
        spent = {name: getattr(now, name) - getattr(self._before, name) for name in now._fields}
        # Guest time is already in user time.
        total_s = sum(seconds for name, seconds in spent.items() if not name.startswith("guest"))
        if total_s < _LEAST_WINDOW_S * (psutil.cpu_count() or 1):
            return None, None
        self._before = now
        idle_s = spent["idle"] + spent.get("iowait", 0.0)
        steal_s = spent.get("steal", 0.0)
        # Ticks of different counters are not read at one instant: keep the share within 0 and 1.
        return min(1.0, max(0.0, 1 - (idle_s + steal_s) / total_s)), max(0.0, steal_s / total_s)


class ProcessTree:
    """A process and its descendants, listed again and again at little cost.

    Remembers who whose parent is, so that each listing reads ``/proc`` only for processes that are new: on
    a server with thousands of them the difference to ``psutil``'s ``children`` is milliseconds, during which
    the tokens of a load generator in this process would wait for their stamps.
    """

    def __init__(self, pid: int) -> None:
        """Prepare; nothing is read yet."""
        self._root = pid
        self._parents: dict[int, int] = {}

    def pids(self) -> tuple[int, ...]:
        """Return the process's pid, then its descendants', parents first; empty if it is gone."""
        present = set(psutil.pids())
        known = self._parents
        # A parent that is gone has left its children to another one.
        parents = {pid: known[pid] if known.get(pid) in present else _parent(pid) for pid in present}
        self._parents = parents  # in one step: pids may be asked for in two threads
        tree = [self._root] if self._root in present else []
        children: defaultdict[int, list[int]] = defaultdict(list)
        for pid in sorted(parents):
            children[parents[pid]].append(pid)
        for pid in tree:  # grows as we go
            tree += children[pid]
        return tuple(tree)


def _parent(pid: int) -> int:
    """Return the pid of a process's parent; 0 if it is gone or has none."""
    # "pid (name) state parent ..."; the name may hold anything, brackets and blanks too
    fields = (_text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


@dataclass(slots=True)
class _Counters:
    """What one process has used since its start; None where it may not be asked."""

    cpu_s: float
    rss_bytes: float
    threads: float
    read_bytes: float | None
    written_bytes: float | None


class ProcessSampler:
    """Reads a set of processes that come and go, such as a server and its engines, as one source.

    ``cpu_ratio`` is the CPU time since the previous reading over the time that has passed: 1.0 is one core,
    two busy cores make 2.0; None in the first reading and over less than 50 ms. ``cpu_s``, ``read_bytes`` and
    ``written_bytes`` (storage, not page cache) count since the start of each process and keep what
    ended ones were last seen to have used, so they never fall; a process that is found late (up to
    ``relist_s``) brings all it has used into that reading. ``rss_bytes`` counts memory that two processes
    share twice. ``processes`` and ``threads`` are alive now.
    """

    def __init__(
        self,
        pids: Callable[[], Iterable[int]],
        *,
        source: str = "server",
        relist_s: float = _RELIST_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            pids: Gives the processes to read; asked every ``relist_s``. For example ``target.pids`` or
                ``ProcessTree(1234).pids``.
            source: Name of the source.
            relist_s: Until the processes are listed again: those that start meanwhile are found so late.
            clock: Monotonic seconds.
        """
        self.notes: list[str] = []
        self._pids = pids
        self._source = source
        self._clock = clock
        self._relist_s = relist_s
        self._relist_at_s = float("-inf")
        self._members: dict[psutil.Process, _Counters | None] = {}
        self._ended = _Counters(0.0, 0.0, 0.0, 0.0, 0.0)
        self._before: tuple[float, float] | None = None  # when, cpu_s

    def read(self) -> Mapping[str, Mapping[str, float | None]]:
        """Return the values of the set, now; all but ``processes`` are None when none is alive."""
        now_s = self._clock()
        if now_s >= self._relist_at_s:
            self._relist()
            self._relist_at_s = now_s + self._relist_s
        alive = []
        for process in tuple(self._members):
            counters = _read_process(process)
            if counters is None:
                self._retire(process)
            else:
                self._members[process] = counters
                alive.append(counters)
        counted = [self._ended, *alive]
        cpu_s = sum(one.cpu_s for one in counted)
        return {
            self._source: {
                "processes": len(alive),
                "threads": sum(one.threads for one in alive) if alive else None,
                "rss_bytes": sum(one.rss_bytes for one in alive) if alive else None,
                "cpu_ratio": self._cpu_ratio(now_s, cpu_s) if alive else None,
                "cpu_s": cpu_s if alive else None,
                "read_bytes": _sum_known(one.read_bytes for one in counted) if alive else None,
                "written_bytes": _sum_known(one.written_bytes for one in counted) if alive else None,
            }
        }

    def _relist(self) -> None:
        listed = set()
        for pid in self._pids():
            try:
                # Compares by pid and start time: a pid that was used again is another process.
                listed.add(psutil.Process(pid))
            except psutil.Error:
                continue
        for process in self._members.keys() - listed:
            self._retire(process)
        for process in listed - self._members.keys():
            self._members[process] = None

    def _retire(self, process: psutil.Process) -> None:
        """Keep what a process had used when it was last read, and forget it."""
        last, ended = self._members.pop(process), self._ended
        if last is not None:
            ended.cpu_s += last.cpu_s
            ended.read_bytes = _sum_known((ended.read_bytes, last.read_bytes))
            ended.written_bytes = _sum_known((ended.written_bytes, last.written_bytes))

    def _cpu_ratio(self, now_s: float, cpu_s: float) -> float | None:
        if self._before is None:
            self._before = (now_s, cpu_s)
            return None
        then_s, cpu_then_s = self._before
        if now_s - then_s < _LEAST_WINDOW_S:
            return None
        self._before = (now_s, cpu_s)
        return (cpu_s - cpu_then_s) / (now_s - then_s)


def _sum_known(values: Iterable[float | None]) -> float | None:
    """Return the sum, or None if a part of it is not known."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _read_process(process: psutil.Process) -> _Counters | None:
    """Return what a process uses; None if it is gone, a zombie, or not ours to ask."""
    try:
        with process.oneshot():
            cpu = process.cpu_times()
            rss_bytes, threads = process.memory_info().rss, process.num_threads()
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
        try:
            storage = process.io_counters()
        except psutil.AccessDenied:
            return _Counters(cpu.user + cpu.system, rss_bytes, threads, None, None)
    except psutil.Error:
        return None
    return _Counters(cpu.user + cpu.system, rss_bytes, threads, storage.read_bytes, storage.write_bytes)
