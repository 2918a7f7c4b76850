"""A server with a known schedule: what the instrument is checked against.

It speaks enough of Ollama's API to be measured, but nothing is inferred: each request follows a
script, and the server stamps its own writes with ``time.perf_counter``, which on Linux is one clock
for all processes, so a client's stamps can be checked against them.
"""

from ollamalab.scripted.script import Fault, Script, ServedRequest
from ollamalab.scripted.server import ScriptedServer

__all__ = ["Fault", "Script", "ScriptedServer", "ServedRequest"]
