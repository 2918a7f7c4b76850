"""A live view of GPUs, memory, loaded models, slots, queue and tokens/s, and the same as Prometheus text.

``watching`` reads, ``board`` is what is known at one moment, ``view`` draws it, ``exposition`` exposes it.
"""

from ollamalab.monitor.run import monitor, serve_address
from ollamalab.monitor.view import line, picture

__all__ = ["line", "monitor", "picture", "serve_address"]
