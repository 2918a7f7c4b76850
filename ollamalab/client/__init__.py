"""One request to one Ollama server, every stage timed.

- ``ollama``: the client
- ``stages``: where the time of a request went
- ``transport``: httpx with a moment for each stage, and its errors as ours
- ``capture``: raw reads with their moments, and what is read from them afterwards
"""

from ollamalab.client.capture import Capture, Reading, error_text
from ollamalab.client.ollama import Answer, OllamaClient
from ollamalab.client.stages import Moments, StageLedger, stage_ledger
from ollamalab.client.transport import Lookup, system_lookup

__all__ = [
    "Answer",
    "Capture",
    "Lookup",
    "Moments",
    "OllamaClient",
    "Reading",
    "StageLedger",
    "error_text",
    "stage_ledger",
    "system_lookup",
]
