"""What several instances are sent: workloads that ask something else of whoever shares them out.

The requests of a visit are drawn from its block: equal for all ways, with new nonces.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from ollamalab.arrivals import ArrivalPattern, Arrivals
from ollamalab.lab.fairness import brief_text
from ollamalab.lab.subject import PromptShape
from ollamalab.loadgen import LoadSettings
from ollamalab.protocol.upstream import Request
from ollamalab.workload import WORDS, Prompt, chat_body, generate_body, inference_request, text_prompt

#: Between way and workload in the name of an arm.
IN_ARM = ": "


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is sent in one visit.

    Attributes:
        name: As tables call it.
        route: The policy that is made for it.
        load: How requests are offered; ``requests`` says how many.
        request_of: Given the number of a request, its block and a nonce, the request.
        neighbours: Clients that use the last instance at the same time, past the balancer.
        counts_tokens: Whether engines are asked how many prompt tokens they evaluate in a visit.
    """

    name: str
    route: str
    load: LoadSettings
    request_of: Callable[[int, int, str], Request]
    neighbours: int = 0
    counts_tokens: bool = False

    def requests(self, block: int, nonces: random.Random) -> list[Request]:
        """Return the requests of a visit, in order."""
        nonce = f"{nonces.randrange(10**9):09d}"
        return [
            self.request_of(number, block, f"{nonce}{number:03d}")
            for number in range(self.load.requests or 0)
        ]

    def arm(self, route: str) -> str:
        """Return the name of the arm that sends this workload by a policy."""
        return f"{route}{IN_ARM}{self.name}"


def uniform(model: str, shape: PromptShape, *, requests: int, rate_rps: float, seed: int) -> Workload:
    """Return brief requests for one model, independent of each other, whose answers differ in length."""

    def request_of(number: int, block: int, nonce: str) -> Request:
        rng = random.Random(f"{block}:{number}")
        tokens = max(1, round(shape.num_predict * rng.uniform(0.5, 1.5)))
        return _brief(model, replace(shape, num_predict=tokens), rng, nonce)

    arrivals = Arrivals(pattern=ArrivalPattern.POISSON, rate_rps=rate_rps)
    return Workload(
        name="uniform",
        route="least-inflight",
        load=LoadSettings(arrivals=arrivals, requests=requests, seed=seed),
        request_of=request_of,
    )


def busy_neighbour(model: str, shape: PromptShape, *, requests: int, rate_rps: float, seed: int) -> Workload:
    """Return the same while somebody else keeps the last instance busy, which makes it slow."""
    same = uniform(model, shape, requests=requests, rate_rps=rate_rps, seed=seed)
    return replace(same, name="one slow instance", route="predicted", neighbours=1)


def mixed_models(models: Sequence[str], shape: PromptShape, *, requests: int) -> Workload:
    """Return brief requests one after the other, equally many for each model, in an order that is drawn."""

    def request_of(number: int, block: int, nonce: str) -> Request:
        rng = random.Random(block)
        order = list(islice(cycle(rng.sample(models, len(models))), requests))
        rng.shuffle(order)
        return _brief(order[number], shape, random.Random(f"{block}:{number}"), nonce)

    return Workload(
        name="mixed models",
        route="model-aware",
        load=LoadSettings(requests=requests),
        request_of=request_of,
    )


def growing_chats(model: str, shape: PromptShape, *, talks: int, turns: int) -> Workload:
    """Return conversations that grow side by side, all with a system message of their own.

    The assistant's earlier words are given, not its own, so that all policies send the same.

    Args:
        model: That is asked.
        shape: Tokens of the system message, and of each answer.
        talks: How many; they take turns.
        turns: Questions in each.
    """

    def request_of(number: int, _: int, nonce: str) -> Request:
        talk, turn = number % talks, number // talks
        rng = random.Random(talk)
        duties = " ".join(rng.choice(WORDS) for _ in range(shape.prompt_tokens))
        messages = [{"role": "system", "content": f"{nonce[:9]}{talk:03d} {duties}"}]
        for asked in range(turn + 1):
            messages.append({"role": "user", "content": f"And what do you know of the {rng.choice(WORDS)}?"})
            if asked < turn:
                words = " ".join(rng.choice(WORDS) for _ in range(shape.num_predict))
                messages.append({"role": "assistant", "content": words})
        prompt = Prompt(messages=tuple(messages), num_predict=shape.num_predict, options={"temperature": 0.0})
        return inference_request("/api/chat", chat_body(prompt, model))

    return Workload(
        name="chats",
        route="prefix",
        load=LoadSettings(clients=talks, requests=talks * turns),
        request_of=request_of,
        counts_tokens=True,
    )


def _brief(model: str, shape: PromptShape, rng: random.Random, nonce: str) -> Request:
    text = f"{nonce} {brief_text(rng, shape.prompt_tokens, rng)}"
    prompt = text_prompt(text, num_predict=shape.num_predict, temperature=0.0)
    return inference_request("/api/generate", generate_body(prompt, model) | {"raw": True})
