"""A task of one's own: bursts on which the tail counts most, with seeds of its own.

python examples/extending/task.py
cd examples/extending && helm-gym evaluate pid --task task:TAIL
"""

from __future__ import annotations

import helm_gym
from helm_gym.reward import CostWeights
from helm_gym.tasks import Task

TAIL = Task(
    "tail-bursts-v0",
    "burst",
    "bursts, the tail counts most",
    horizon=240,
    seeds=tuple(range(100, 110)),
    weights=CostWeights(tail=1.0, slo=4.0),
)

if __name__ == "__main__":
    print(helm_gym.evaluate(["static:0.5", "pid"], task=TAIL, seeds=[100], horizon=20))
