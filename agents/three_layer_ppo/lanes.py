"""The lanes that the base policy learns in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.training_env import TrainingEnv
from helm_gym.policy import Floats


class BaseEnv(TrainingEnv):
    """The network's output is added to the pull towards the curves' split, as it is when the policy acts."""

    def to_action(self, chosen: NDArray[Any]) -> Floats:
        settings: Any = self.settings
        lean = settings.pull / self.training.profile.max_step * self._seen[:, -1:]
        return np.clip(chosen + lean, -1.0, 1.0).astype(np.float32)
