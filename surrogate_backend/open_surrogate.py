"""Opens the surrogate of a node or of a cluster."""

from __future__ import annotations

import pathlib

from helm_gym.backend import Backend
from helm_gym.cluster.topology import Cluster
from helm_gym.profile import Profile
from surrogate_backend.backend import SurrogateBackend
from surrogate_backend.checkpoint import find
from surrogate_backend.clusters.backend import ClusterSurrogate


def open_surrogate(
    profile: Profile,
    lanes: int = 1,
    cluster: Cluster | None = None,
    checkpoint: str | pathlib.Path | None = None,
    of: str = "modelled",
) -> Backend:
    """The surrogate of single nodes, or with a cluster that of clusters; see SurrogateBackend and ClusterSurrogate.

    Args:
        checkpoint: a folder that ``helm-gym fit`` has filled, or a shipped name; the profile's shipped one if None.
        of: which rung it stands for.
    """
    folder = None if checkpoint is None else find(str(checkpoint), profile)
    if cluster is None:
        return SurrogateBackend(profile, lanes=lanes, checkpoint=folder, of=of)
    return ClusterSurrogate(profile, lanes, cluster, checkpoint=folder, of=of)


def open_of_measured(
    profile: Profile,
    lanes: int = 1,
    cluster: Cluster | None = None,
    checkpoint: str | pathlib.Path | None = None,
) -> Backend:
    """The surrogate of the measured rung; see ``open_surrogate``."""
    return open_surrogate(profile, lanes, cluster, checkpoint, "measured")
