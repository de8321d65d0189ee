"""The lanes that the base policy learns in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.training_env import TrainingEnv
from helm_gym.control_loop import Step
from helm_gym.policy import Floats

_BUSIEST = 0.9  # beyond it, what a queue would do in the long run says little of the next minutes


class BaseEnv(TrainingEnv):
    """Lanes in which the network's output is added to the pull towards the curves' split, as it is when it acts."""

    def to_action(self, chosen: NDArray[Any]) -> Floats:
        settings: Any = self.settings
        lean = settings.pull / self.training.profile.max_step * self._seen[:, -1:]
        return np.clip(chosen + lean, -1.0, 1.0).astype(np.float32)

    def reward(self, served: Step) -> NDArray[np.float64]:
        """What service cost more than at the best simulated split, as the sojourn that it leads to, and what was moved.

        Sojourn itself is the sum of what many intervals did and of chance: an interval of 50 requests varies by a
        third, service by a tenth. What a service time ``s`` leads to in the long run is ``s / (1 - rate s)``, and
        most of the chance in it is in the simulated curve, too, and cancels.
        """
        telemetry, weights, settings = served.telemetry, self.training.task.weights, self.settings
        rate = telemetry["arrival_rate_rps"] / 1e3

        def sojourn_ms(service_ms: NDArray[np.float64]) -> NDArray[np.float64]:
            return service_ms / (1.0 - np.minimum(rate * service_ms, _BUSIEST))

        worse = sojourn_ms(telemetry["interval_service_ms"]) - sojourn_ms(telemetry["predicted_ms"].min(axis=2))
        moved = served.terms[-1] / weights.move
        return -(worse.mean(axis=1) / self.lanes.loop.backend.slo_ms + settings.move_price * moved)
