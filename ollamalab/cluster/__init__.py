"""Several upstreams as one: who is well, who has what, who takes a request, and who takes it next.

A *member* is an upstream of the cluster; a *replica* is a model at a member; a *booking* is one request
at a member.

==============  ========================================================================
``cluster``     the Upstream: choose, send, and send on before the first byte
``roster``      who is there, and who may take requests for a model
``member``      one upstream and all that is known of it
``replica``     one model there: what it can take, how fast it is (pure)
``booking``     one request there, counted from the decision until it has left
``health``      up, down, busy (pure)
``breaker``     closed, open, half open (pure)
``budget``      how many requests may be sent twice (pure)
``verdict``     what an answer says of who gave it (pure)
``watch``       probes, and lists of models
``listing``     what is asked of the cluster itself; ``merging`` makes one list of many
``capacity``    what the queue in front asks and tells
``usual``       what requests of a model take (pure)
``prompts``     what prefix routing compares
``reply``       replies
``visits``      who else hears of every request
``statistics``  what a cluster tells of itself
==============  ========================================================================
"""

from ollamalab.cluster.cluster import Cluster
from ollamalab.cluster.member import Member
from ollamalab.cluster.statistics import ClusterStatistics, MemberState, MemberStatistics, ReplicaStatistics

__all__ = [
    "Cluster",
    "ClusterStatistics",
    "Member",
    "MemberState",
    "MemberStatistics",
    "ReplicaStatistics",
]
