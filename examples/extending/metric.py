"""A metric of one's own: how far the split travels an episode. It is in the table, the JSON object and the report.

python examples/extending/metric.py
"""

from __future__ import annotations

import numpy as np

import helm_gym
from helm_gym.evaluation import metrics
from helm_gym.evaluation.results import Episodes, Evaluation, Values


def travelled(evaluation: Evaluation, episodes: Episodes) -> Values:
    """(seeds,), the mean of the nodes'."""
    return np.asarray(np.abs(np.diff(episodes.nodes["alpha"], axis=1)).sum(axis=1).mean(axis=1))


metrics.METRICS["travelled"] = metrics.by_seed(
    "travelled", "travelled", "sum of the changes of alpha in an episode", travelled
)

if __name__ == "__main__":
    print(helm_gym.evaluate(["static:0.5", "pid"], task="burst-v0", seeds=1, horizon=20))
