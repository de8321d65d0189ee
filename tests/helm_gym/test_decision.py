"""What is timed as a decision is what a control loop does."""

from __future__ import annotations

import numpy as np

from helm_gym.benchmarks.decision_time import decision_us, record
from helm_gym.policy import Floats
from helm_gym.telemetry import Telemetry


class Recorder:
    """Keeps what it is shown, and counts its decisions in its state."""

    name = "recorder"

    def __init__(self) -> None:
        self.seen: list[Floats] = []
        self.states: list[float] = []

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, 1), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        self.seen.append(observation.copy())
        self.states.append(float(state[0, 0]))
        return np.zeros((1, 1), np.float32), state + 1


def test_a_timed_decision_sees_what_a_loop_would_show() -> None:
    layout, slo_ms, recorded = record(intervals=24)
    policy, memory = Recorder(), layout.memory(1, 1)
    times = decision_us(policy, layout, slo_ms, recorded, 50)
    assert times.shape == (50,) and (times > 0).all()
    assert policy.states == list(range(len(policy.seen)))
    for k, observation in enumerate(policy.seen):
        shown = layout.observe(Telemetry(recorded[k % len(recorded)]), slo_ms, memory)
        np.testing.assert_array_equal(observation, shown[0])
