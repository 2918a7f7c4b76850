"""Prompts go where their beginning has been seen, as long as that overloads nobody.

An engine that still holds the keys and values of a prompt's beginning need not evaluate it again.
Which one does is not asked over the network: an index remembers where beginnings were sent. Load
comes first, though. A bound on the imbalance keeps a shared system prompt from piling all requests
onto one upstream; it is one turn of the slots, since Ollama has 1 to 8 of them, not 64.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence

from ollamalab.routing.candidates import Candidates
from ollamalab.routing.views import UpstreamView, Want

#: Prompts are compared in blocks of so many characters: some 64 tokens.
BLOCK_CHARACTERS = 256
#: No more than so many blocks of a prompt are remembered or looked up: 32 KB, some 8,000 tokens.
MOST_BLOCKS = 128
#: Blocks remembered in all; the longest unused go first.
MOST_REMEMBERED = 100_000
#: Upstreams remembered for one block; the longest unused goes first.
MOST_HOLDERS = 8


class PrefixIndex:
    """Remembers which upstream was sent which beginnings.

    Args:
        most_remembered: Blocks in all.
    """

    def __init__(self, *, most_remembered: int = MOST_REMEMBERED) -> None:
        self._holders: OrderedDict[int, dict[str, None]] = OrderedDict()
        self._most_remembered = most_remembered

    def __len__(self) -> int:
        return len(self._holders)

    def blocks(self, model_key: str, prompt: str) -> list[int]:
        """Return one number per whole block of a prompt; equal numbers mean equal beginnings.

        Each block's number covers all before it, so the chain can be cut anywhere. A prompt shorter
        than one block counts as one.
        """
        end = min(len(prompt), MOST_BLOCKS * BLOCK_CHARACTERS)
        whole = max(BLOCK_CHARACTERS, end - end % BLOCK_CHARACTERS) if end else 0
        chain, numbers = hash(model_key), []
        for start in range(0, whole, BLOCK_CHARACTERS):
            chain = hash((chain, prompt[start : start + BLOCK_CHARACTERS]))
            numbers.append(chain)
        return numbers

    def depths(self, blocks: Sequence[int]) -> dict[str, int]:
        """Return for each upstream how many blocks from the start it was sent; absent means none."""
        depths: dict[str, int] = {}
        for depth, block in enumerate(blocks, start=1):
            holders = self._holders.get(block)
            if holders is None:
                break
            for name in holders:
                depths[name] = depth
        return depths

    def remember(self, blocks: Sequence[int], name: str) -> None:
        """Note that an upstream is sent these blocks now."""
        known = self._holders
        for block in blocks:
            holders = known.get(block)
            if holders is None:
                known[block] = {name: None}
                continue
            known.move_to_end(block)
            holders.pop(name, None)
            holders[name] = None
            if len(holders) > MOST_HOLDERS:
                del holders[next(iter(holders))]
        while len(known) > self._most_remembered:
            known.popitem(last=False)

    def forget(self, name: str) -> None:
        """Drop an upstream: it was restarted, or has lost what it held."""
        empty = []
        for block, holders in self._holders.items():
            if holders.pop(name, name) is None and not holders:
                empty.append(block)
        for block in empty:
            del self._holders[block]


class PrefixAffinity:
    """The deepest known beginning, unless its holder is more than a turn of slots ahead of the idlest.

    Args:
        rng: Draws among equals and, of very many members, those that are looked at.
        index: What was sent where.
    """

    def __init__(self, rng: random.Random, index: PrefixIndex | None = None) -> None:
        self._rng = rng
        self.index = index or PrefixIndex()

    def choose(self, want: Want, candidates: Candidates) -> UpstreamView:
        """Return the member that has most of the prompt, within the bound."""
        key = want.model_key
        blocks = self.index.blocks(key, want.prompt)
        depths = self.index.depths(blocks)
        idlest = min(candidates.shortlist(self._rng), key=lambda member: _in_flight(member, key))
        chosen, deepest = idlest, depths.get(idlest.name, 0)
        least = _in_flight(idlest, key)
        if depths:
            for member in candidates.named(depths):
                depth = depths[member.name]
                if depth > deepest and _in_flight(member, key) - least < _slots(member, key):
                    chosen, deepest = member, depth
        self.index.remember(blocks, chosen.name)
        return chosen


def _in_flight(member: UpstreamView, key: str) -> int:
    model = member.models.get(key)
    return model.in_flight if model else 0


def _slots(member: UpstreamView, key: str) -> int:
    model = member.models.get(key)
    return model.slots if model else 1
