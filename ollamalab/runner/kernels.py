"""The process that executes a notebook: this very Python, whatever kernels are installed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

#: Name that papermill and nbclient know the kernel by.
KERNEL_NAME = "python3"

# Frozen modules and a loopback connection only make the kernel warn; what it logs should be a crash.
_COMMAND = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "--log-level=ERROR"]


class Kernel:
    """One kernel process at a time, with its environment and a file for its last words.

    It leads a process group of its own, so Ctrl-C in the terminal does not reach it; ``interrupt`` does.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        """Prepare a kernel; ``manager_class`` starts it.

        Args:
            environment: Added to this process's own.
            log: What the process itself writes, beside the cells' outputs; such as why it crashed.
        """
        self._environment = {**os.environ, **environment}
        self._log = log
        self._pid: int | None = None
        self._manager: AsyncKernelManager | None = None
        self._ended = threading.Event()

    @property
    def manager_class(self) -> type[AsyncKernelManager]:
        """The manager that nbclient builds to start the kernel."""
        kernel = self

        class ThisPython(KernelSpecManager):
            def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
                return KernelSpec(
                    argv=[*_COMMAND, "-f", "{connection_file}"], display_name=kernel_name, language="python"
                )

        class Manager(AsyncKernelManager):
            def __init__(self, **settings: Any) -> None:
                super().__init__(kernel_spec_manager=ThisPython(), **settings)

            # The base class is typed as its blocking sister; here it is a coroutine.
            async def start_kernel(self, **settings: Any) -> None:  # type: ignore[override]
                with kernel._log.open("wb") as log:
                    settings |= {"env": kernel._environment, "stdout": log, "stderr": log}
                    await super().start_kernel(**settings)
                kernel._pid = getattr(self.provisioner, "pid", None)
                kernel._manager = self

        return Manager

    def interrupt(self, *, grace_s: float) -> None:
        """Raise KeyboardInterrupt in the running cell, and kill the process if that has not ended it.

        Returns at once; an idle kernel ignores the interrupt, so nothing more must be sent to it.

        Args:
            grace_s: How long the cell may take to clean up.
        """
        threading.Thread(target=self._interrupt, args=(grace_s,), daemon=True).start()

    def _interrupt(self, grace_s: float) -> None:
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGINT)
        if self._manager is not None:
            # ipykernel cancels an awaiting cell at the next event of its loop, and the signal is none
            # (tornado schedules it with call_soon): any message on the shell channel is.
            client = self._manager.blocking_client()
            client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)
            client.kernel_info()
            self._ended.wait(grace_s)
            client.stop_channels()
        if not self._ended.is_set():
            self.kill()

    def kill(self) -> None:
        """End the process and whatever is left in its group, at once."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)

    def close(self, *, keep_log: bool) -> None:
        """End what is left of the process; its log is worth keeping only if it crashed."""
        self.kill()
        self._ended.set()
        self._pid = self._manager = None
        if not keep_log:
            self._log.unlink(missing_ok=True)

    def last_words(self) -> str:
        """Return the last line that the process wrote itself; "" if none."""
        try:
            lines = self._log.read_text(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
