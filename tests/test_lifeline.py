"""Nothing that was started through a lifeline outlives its starter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from ollamalab.lifeline import tethered

#: A "server" with an "engine" in a session of its own, which a process group does not reach.
FAMILY = 'setsid sleep 600 & echo "$$ $!"; wait'
#: The same, deaf to SIGTERM.
DEAF = "trap '' TERM; setsid sleep 600 & echo \"$$ $!\"; while true; do wait; done"


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        tethered(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin
            process.stdin.close()


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Wait until both processes have been named, and return them."""
    assert process.stdout
    return [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]


def assert_gone(processes: Sequence[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def test_closing_the_lifeline_ends_the_command_and_all_it_started() -> None:
    """The descendants go too, even those in another session."""
    with started(["sh", "-c", FAMILY]) as process:
        members = family(process)
        assert process.stdin
        process.stdin.close()
        assert_gone(members)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_command_that_has_hardly_begun_hears_the_signal_too() -> None:
    """The lifeline is closed already when the supervisor forks, so the signal comes before the exec."""
    for _ in range(10):
        with started(["sleep", "600"]) as process:
            assert process.stdin
            process.stdin.close()
            assert process.wait() == 128 + signal.SIGTERM, "killed after the grace, for it had not heard"


def test_a_command_that_ignores_sigterm_is_killed() -> None:
    with started(["sh", "-c", DEAF]) as process:
        members = family(process)
        assert process.stdin
        process.stdin.close()
        assert_gone(members)
    assert process.returncode == 128 + signal.SIGKILL


def test_nothing_outlives_a_starter_killed_with_sigkill() -> None:
    """What a crashed or killed notebook kernel leaves behind: nothing."""
    code = (
        "import subprocess, sys; from ollamalab.lifeline import tethered\n"
        f"process = subprocess.Popen(tethered(['sh', '-c', {FAMILY!r}]), stdin=subprocess.PIPE)\n"
        "process.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as starter:
        members = family(starter)
        supervisor = psutil.Process(starter.pid).children()
        starter.kill()
        assert_gone([*members, *supervisor])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_supervisor_ends_the_family(number: int) -> None:
    with started(["sh", "-c", FAMILY]) as process:
        members = family(process)
        process.send_signal(number)
        assert_gone(members)


def test_the_engines_of_a_killed_server_go_with_it() -> None:
    """A server killed with SIGKILL cannot tidy up; its orphans are killed for it."""
    with started(["sh", "-c", FAMILY]) as process:
        server, engine = family(process)
        server.kill()
        assert_gone([server, engine])
        assert process.wait() == 128 + signal.SIGKILL


def test_a_killed_supervisor_takes_the_command_along() -> None:
    with started(["sleep", "600"]) as process:
        supervisor = psutil.Process(process.pid)
        while not (members := supervisor.children()):
            assert process.poll() is None
        process.kill()
        assert_gone(members)


@pytest.mark.parametrize(("command", "status"), [(["true"], 0), (["sh", "-c", "exit 3"], 3)])
def test_the_exit_status_is_the_commands(command: list[str], status: int) -> None:
    with started(command) as process:
        assert process.wait() == status


def test_a_command_that_is_not_there_answers_127_and_says_so() -> None:
    with started(["no-such-program"], stderr=subprocess.PIPE) as process:
        assert process.wait() == 127
        assert process.stderr
        assert process.stderr.read() == b"no-such-program: No such file or directory\n"


def test_the_command_has_the_starters_environment_and_no_input() -> None:
    """The lifeline is the supervisor's alone: the command reads end of file at once."""
    with started(["sh", "-c", "cat; echo $MARK"], env=os.environ | {"MARK": "here"}) as process:
        assert process.stdout
        assert process.stdout.readline() == b"here\n"
