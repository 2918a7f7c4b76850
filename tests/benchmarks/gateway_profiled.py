"""Runs the command line under a profiler that starts at SIGUSR1 and ends, with its file written, at SIGUSR2.

So start-up is left out. ``python gateway_profiled.py FILE serve --upstream …``
"""

from __future__ import annotations

import cProfile
import signal
import sys
from pathlib import Path

from ollamalab.cli import main


def watch(file: Path) -> None:
    """Let the two signals start and end the profile; its file appears whole."""
    profile = cProfile.Profile()

    def end(*_: object) -> None:
        profile.disable()
        part = file.with_suffix(".part")
        profile.dump_stats(part)
        part.rename(file)

    signal.signal(signal.SIGUSR1, lambda *_: profile.enable())
    signal.signal(signal.SIGUSR2, end)


if __name__ == "__main__":
    watch(Path(sys.argv.pop(1)))
    main()
