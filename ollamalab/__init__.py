"""ollamalab: which Ollama optimisations pay on your own host, by how much and how surely."""

from __future__ import annotations

import logging

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())
