"""Models that are in memory when somebody asks for them: preload, renewal, and what both are worth.

========================  ==================================================================
``preload``, ``asking``   the request that loads or renews a model; sending it
``gaps``                  how long a model is usually left alone, and what that foretells
``warmth``                what is known of one model on one upstream
``room``                  whether one more model fits
``controller``            what to do next
``ledger``                what it saved and cost, counted beside a world without it
``keeper``                the models of one upstream
``warmer``                the adapter: polls, sends, counts
========================  ==================================================================

Only the traffic decides how long a server keeps a model: renewals carry no ``keep_alive`` of their own,
so that all is as before once they stop.
"""

from ollamalab.warmup.asking import list_loaded, send_preload
from ollamalab.warmup.keeper import Keeper, Visit
from ollamalab.warmup.ledger import Totals
from ollamalab.warmup.preload import Preload, preload_of
from ollamalab.warmup.warmer import ModelStatistics, Warmer, WarmupStatistics

__all__ = [
    "Keeper",
    "ModelStatistics",
    "Preload",
    "Totals",
    "Visit",
    "Warmer",
    "WarmupStatistics",
    "list_loaded",
    "preload_of",
    "send_preload",
]
