"""What fitting (torch) and stepping (compiled) of a cluster's surrogate share; it needs neither."""

from __future__ import annotations

import numpy as np

KIND = "clusters"  # of checkpoint
DRAWN = ("score", "consistent-hash")  # rules under which caches, or users, draw requests to a node


def size_scale(nodes: int) -> float:
    """The spread of nodes' attraction grows with how many there are: its variance with the logarithm."""
    return float(np.sqrt(np.log2(max(nodes, 2))))
