"""A process that never outlives whoever started it, not even after ``kill -9``.

``tethered`` gives the command line of a small supervisor, which is this file run as a script. Its
standard input is the *lifeline*: a pipe whose other end the starter keeps open and never writes to.
When that end closes, because it was closed on purpose or because its holder is gone in whatever
way, the supervisor ends the command and everything the command started.

Two other ways were weighed. ``PR_SET_PDEATHSIG`` alone needs a ``preexec_fn``, which may deadlock in a
process with threads (a Jupyter kernel has them), fires when the starting *thread* ends, and reaches
no grandchildren, such as the engines of ``ollama serve``. A pipe that the server itself watches works
only with servers we wrote. Cost of the supervisor: about 25 ms at the start and 9 MB.

Linux only: subreaper, pidfd and ``/proc``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence

GRACE_S = 5.0  #: between asking a process to end and killing it

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_COMMAND_NOT_FOUND = 127  # what a shell answers


def tethered(command: Sequence[str]) -> list[str]:
    """Return the command that runs ``command`` for as long as its standard input stays open.

    Start it with ``stdin=PIPE``, keep that end, and close it to end the command: SIGTERM, then
    SIGKILL after ``GRACE_S`` for it and all its descendants. Output goes where the supervisor's
    goes. It runs in a session of its own, so Ctrl-C in a terminal or a notebook does not reach it.
    Its exit status is the command's, 128 + N if signal N ended it, 127 if it could not be started.

    Args:
        command: Program and arguments; the program is searched on PATH.
    """
    return [sys.executable, "-I", "-S", __file__, *command]


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _start(command: Sequence[str]) -> int:
    """Start the command and return its pid."""
    supervisor = os.getpid()
    # A signal that comes between fork and exec would meet our own handlers there, and be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        return pid
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it died before the line above took effect
            os._exit(1)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and exec would keep that
            signal.signal(ignored, signal.SIG_DFL)
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], list(command))
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201
    finally:
        os._exit(_COMMAND_NOT_FOUND)


def _await_end(child: int, *, lifeline: int, signals: int) -> None:
    """Return when the child has ended, the lifeline has closed, or a signal has come."""
    ended = os.pidfd_open(child)
    poll = select.poll()
    for descriptor in (ended, lifeline, signals):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if ready & {ended, signals} or not os.read(lifeline, 4096):
            return


def _children() -> Iterator[int]:
    """Give the pids whose parent is this process."""
    me = str(os.getpid())
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - pathlib is slow to import
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123
            # "pid (name) state ppid ..."; the name may hold anything, brackets and blanks too
            if stat.read().rpartition(b")")[2].split()[1].decode() == me:
                yield int(name)


def _end(child: int) -> int:
    """End the child politely, then kill whatever is left below us; return the child's exit status."""
    ended = select.poll()
    ended.register(os.pidfd_open(child), select.POLLIN)
    os.kill(child, signal.SIGTERM)  # harmless if it has ended: nobody has reaped it yet
    ended.poll(GRACE_S * 1000)
    status = 0
    while True:
        # As the subreaper we inherit each orphan, so "our children" becomes everything left.
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            pid, wait_status = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if pid == child:
            code = os.waitstatus_to_exitcode(wait_status)
            status = code if code >= 0 else 128 - code


def _main(command: Sequence[str]) -> int:
    with contextlib.suppress(PermissionError):  # already the leader of a session
        os.setsid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # A signal only makes a pipe readable: a handler that raised could do so in the middle of _end.
    signals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    for number in _ENDING:
        signal.signal(number, lambda *_: None)
    child = _start(command)
    _await_end(child, lifeline=0, signals=signals)
    return _end(child)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
