"""Opens the surrogate of a node or of a cluster."""

from __future__ import annotations

import pathlib

from helm_gym.backend import Backend
from helm_gym.cluster.topology import Cluster
from helm_gym.profile import Profile
from surrogate_backend.backend import SurrogateBackend
from surrogate_backend.clusters.backend import ClusterSurrogate


def open_surrogate(
    profile: Profile,
    lanes: int = 1,
    cluster: Cluster | None = None,
    checkpoint: pathlib.Path | None = None,
    of: str = "modelled",
) -> Backend:
    """The surrogate of single nodes, or with a cluster that of clusters; see SurrogateBackend and ClusterSurrogate."""
    if cluster is None:
        return SurrogateBackend(profile, lanes=lanes, checkpoint=checkpoint, of=of)
    return ClusterSurrogate(profile, lanes, cluster, checkpoint=checkpoint, of=of)
