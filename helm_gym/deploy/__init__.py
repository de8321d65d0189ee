"""A policy in control of a live node: guarded, watched, swapped while it runs. For any serving engine.

    from helm_gym.deploy import Controller

    controller = Controller("cpu-small", "policy.onnx", nodes=2, mode="shadow", state_folder="state")
    decision = controller.decide(0, telemetry, time.monotonic())  # once an interval of the node's
    engine.move_towards(decision.target_alpha)

``telemetry`` is a row of ``helm_gym.telemetry``'s columns; ``Counters`` makes one of a foreign engine's counters.
docs/deploy.md has the whole of it.
"""

from helm_gym.deploy.controller import Controller
from helm_gym.deploy.counters import Counters
from helm_gym.deploy.node import Decision
from helm_gym.deploy.settings import ControlSettings

__all__ = ["ControlSettings", "Controller", "Counters", "Decision"]
