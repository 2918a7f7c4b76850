"""The command line: parse, call, exit status.

Exit status everywhere: 0 well, 1 a finding or a failed experiment, 2 bad input, 130 Ctrl-C. One
file per command; each only parses, calls and prints, and imports what is heavy when called.
"""

from __future__ import annotations

import sys

from rich.console import Console

from ollamalab.cli import (  # noqa: F401 - each registers itself
    bench,
    cache,
    compare,
    deploy,
    doctor,
    embedded,
    models,
    monitor,
    run,
    serve,
    warm,
)
from ollamalab.cli.root import EXIT_BAD_INPUT, EXIT_INTERRUPTED, app
from ollamalab.errors import OllamaLabError


def main() -> None:
    """Run the command line; every expected error is one line and an exit status."""
    try:
        app()
    except OllamaLabError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"ollamalab: {error}", markup=False)
        sys.exit(EXIT_BAD_INPUT)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "ollamalab":
            raise  # not a package that an extra would bring
        text = f"ollamalab: the package {error.name} is missing; run: pip install 'ollamalab[all]'"
        Console(stderr=True, soft_wrap=True, highlight=False).print(text, markup=False)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
