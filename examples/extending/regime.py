"""A regime of one's own, and a task that plays it: every sixty intervals half of the users change.

python examples/extending/regime.py
cd examples/extending && helm-gym evaluate pid --task regime:TASK
"""

from __future__ import annotations

import helm_gym
from helm_gym.kernels.jit import kernel
from helm_gym.tasks import Task
from helm_gym.workload.script import Script, hold, uniform, written
from helm_gym.workload.state import INDEX

NEW_SHARE, HOT_SHARE = INDEX["new_share"], INDEX["hot_share"]
CALM, FLOOD = 1, 4  # of helm_gym.workload.regimes.KINDS


@kernel
def shifts(script: Script) -> None:
    """Writes each lane up to ``script.intervals``; its generator is ``script.rng[lane]``, and no other may be used."""
    for lane in range(script.rng.shape[0]):
        rng, calm = script.rng[lane], True
        while written(script, lane) < script.intervals:
            piece = hold(script, lane, 60, CALM if calm else FLOOD, 0.6)
            setting = script.first[lane, piece]  # the profile's own, until it is changed
            if not calm:
                setting[NEW_SHARE] = uniform(rng, 0.4, 0.6)
                setting[HOT_SHARE] = 0.5 * setting[HOT_SHARE]
            calm = not calm


TASK = Task("shifts-v0", "regime:shifts", "users change by halves")

if __name__ == "__main__":
    print(helm_gym.evaluate(["static:0.5", "pid"], task="regime:TASK", seeds=1, horizon=20))
