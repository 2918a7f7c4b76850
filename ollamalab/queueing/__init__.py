"""Bounded fair admission: who waits in front of a model, in which order, and who is refused.

Ollama's own limit does not bound a loaded model: whoever comes waits in a line without end, order of
arrival, no matter who has sent how much. Here the line is bounded, fair among clients by tokens, knows
priorities and deadlines, and is left at once by whoever hangs up.

Terms: a *lane* is a model at an upstream; it has *places*; a request *waits* for one, *holds* it while
it is answered, and gives it back exactly once.

- ``request_queue``: the queue on an event loop, and an upstream behind it
- ``admission``: who goes next, who waits, who is refused; of ``lane``, ``fair_line``, ``shares``
- ``capacity``: how many places; ``parallelism`` learns it
- ``cost``, ``work``: what requests cost, in tokens; ``history``, ``tally``: what there was
"""

from ollamalab.queueing.capacity import Capacity, FixedCapacity, LearntCapacity
from ollamalab.queueing.request_queue import MeteredReply, QueuedUpstream, RequestQueue, Slot, metered
from ollamalab.queueing.tally import ClientStatistics, QueueStatistics
from ollamalab.queueing.ticket import State
from ollamalab.queueing.work import Work

__all__ = [
    "Capacity",
    "ClientStatistics",
    "FixedCapacity",
    "LearntCapacity",
    "MeteredReply",
    "QueueStatistics",
    "QueuedUpstream",
    "RequestQueue",
    "Slot",
    "State",
    "Work",
    "metered",
]
