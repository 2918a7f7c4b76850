"""The embedded server's routes, and what goes round all of them."""

from __future__ import annotations

from aiohttp import web

from ollamalab.embedded import changes, chat, embed, generate, listing, openai, show
from ollamalab.embedded.failures import answer_failures
from ollamalab.embedded.origin import finish_headers, guard
from ollamalab.embedded.service import SERVICE, Service
from ollamalab.protocol.origins import AccessRules

#: Largest request body; images and long contexts need room, a runaway client does not.
MAX_BODY_BYTES = 256 * 1024 * 1024


def create_app(service: Service, rules: AccessRules) -> web.Application:
    """Return the application.

    Args:
        service: What the routes work with.
        rules: Which pages and host names are answered.
    """
    app = web.Application(middlewares=[guard(rules), answer_failures], client_max_size=MAX_BODY_BYTES)
    app[SERVICE] = service
    app.on_response_prepare.append(finish_headers)
    app.add_routes(
        [
            web.get("/", listing.root),
            web.get("/api/version", listing.version),
            web.get("/api/tags", listing.tags),
            web.get("/api/ps", listing.ps, allow_head=False),
            web.post("/api/show", show.show),
            web.post("/api/generate", generate.generate),
            web.post("/api/chat", chat.chat),
            web.post("/api/embed", embed.embed),
            web.post("/api/embeddings", embed.embeddings),
            web.post("/api/pull", changes.pull),
            web.post("/api/push", changes.refuse),
            web.post("/api/create", changes.refuse),
            web.post("/api/copy", changes.refuse),
            web.delete("/api/delete", changes.refuse),
            web.head("/api/blobs/{digest}", changes.refuse),
            web.post("/api/blobs/{digest}", changes.refuse),
            web.post("/v1/chat/completions", openai.chat_completions),
            web.post("/v1/completions", openai.completions),
            web.post("/v1/embeddings", openai.embeddings),
            web.get("/v1/models", openai.models, allow_head=False),
            web.get("/v1/models/{model}", openai.model, allow_head=False),
            web.get("/lab/engines", listing.engines, allow_head=False),
        ]
    )
    return app
