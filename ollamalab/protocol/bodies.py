"""Error bodies and the exact words that Ollama's clients match on."""

from __future__ import annotations

from typing import Any

#: Ollama's words when requests wait to be scheduled and the queue is full; two spaces, as there.
SERVER_BUSY = "server busy, please try again.  maximum pending requests exceeded"


def error_body(message: str) -> dict[str, Any]:
    """Return the body of every error under ``/api``."""
    return {"error": message}


def openai_error_body(message: str, status: int) -> dict[str, Any]:
    """Return the body of every error under ``/v1``."""
    kinds = {400: "invalid_request_error", 404: "not_found_error"}
    return {
        "error": {
            "message": message,
            "type": kinds.get(status, "api_error"),
            "param": None,
            "code": None,
        }
    }


def model_not_found(name: str) -> str:
    """Return the 404 text of generate, chat, show and delete."""
    return f"model '{name}' not found"


def model_not_pulled(name: str) -> str:
    """Return the 404 text of embed and embeddings."""
    return f'model "{name}" not found, try pulling it first'
