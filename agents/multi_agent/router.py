"""The learned router: weights of the joint score that follow what the nodes report."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import numpy as np

from agents.network import Mlp
from helm_gym.cluster.router_observation import RouterLayout
from helm_gym.cluster.routing import WEIGHTS
from helm_gym.errors import IncompatibleError, InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats
from helm_gym.ranges import Within
from helm_gym.training.run_folder import Tensors

if TYPE_CHECKING:
    import onnx

    from helm_gym.policies.onnx_graph import Graph

LAYOUT = "layout"  # the tensor that says which layout of the router's observation the others were trained on


@dataclasses.dataclass(frozen=True)
class Settings:
    """Hyper-parameters.

    Attributes:
        kv, emb, load: the weights that the search starts from, the classic ``joint``'s; ``kv`` stays, since a
            score's ratios alone decide.
        columns: of the router's observation that the weights may follow, by name, with commas between.
        smoothing: how much of the way to what it wants the action goes in one interval.
        controller: what every node runs meanwhile, by name or path.
        nodes, large: of the clusters trained on; one episode in four is of ``large`` nodes.
        candidates, elite: tried a round, and how many of them the next round is drawn around.
        episodes: of a candidate, the same for all of a round.
        intervals: that are scored in an episode, behind the task's warm-up and settling.
        spread: standard deviation of the first round's actions (biases); coefficients have a third of it.
        validation: episodes that a policy is validated on.
        validate_every: rounds.
    """

    kv: float = 1.0
    emb: float = 1.0
    load: float = 1.0
    columns: str = "utilisation_mean,returning_share_mean"
    smoothing: float = 0.2
    controller: str = "three-layer-ppo"
    nodes: Annotated[int, Within(1, 1024)] = 4
    large: Annotated[int, Within(1, 1024)] = 8
    candidates: Annotated[int, Within(1, 10_000)] = 5
    elite: Annotated[int, Within(1, 10_000)] = 2
    episodes: Annotated[int, Within(1, 10_000)] = 2
    intervals: Annotated[int, Within(1, 100_000)] = 60
    spread: float = 0.3
    validation: Annotated[int, Within(1, 10_000)] = 4
    validate_every: Annotated[int, Within(1, 1_000_000)] = 2

    def __post_init__(self) -> None:
        if not all(0 <= weight <= 4 for weight in (self.kv, self.emb, self.load)):
            raise InvalidInputError("A router's first weights (kv, emb, load) must be 0 to 4, as far as actions reach.")
        if not 0 < self.smoothing <= 1 or not 0 < self.spread <= 1:
            raise InvalidInputError("A router needs a smoothing and a spread above 0 and at most 1.")
        counts = (self.nodes, self.large, self.episodes, self.intervals, self.validation, self.validate_every)
        if min(counts) < 1 or not 1 <= self.elite <= self.candidates:
            raise InvalidInputError(
                "A router's training needs at least 1 of nodes, large, episodes, intervals, validation and "
                "validate_every, and an elite of 1 to the number of candidates."
            )

    @property
    def round(self) -> int:
        """Decisions of a round: every candidate's episodes."""
        return self.candidates * self.episodes * self.intervals


def columns(layout: RouterLayout, settings: Settings) -> list[int]:
    """Where the columns that the weights follow stand.

    Raises:
        UnknownNameError: a column that the router does not see.
    """
    return [layout.column(name.strip()) for name in settings.columns.split(",") if name.strip()]


class LearnedRouter:
    """A linear map of the router's observation to its action, and a low-pass filter that keeps it from chattering.

        wanted = W (observation - mean) / scale + b, within [-1, 1]
        action = last + smoothing (wanted - last)

    State: the last action, and whether there is one. It sees statistics over nodes and no node, so one serves clusters
    of any size.

    Args:
        layout: of the nodes' observations.
        tensors: as ``network.Mlp`` takes them, of one layer, and ``layout``.

    Raises:
        IncompatibleError: the tensors were trained on another layout of the router's observation.
        KeyError, ValueError: a tensor is missing or of another shape.
    """

    rule = "score"

    def __init__(self, layout: ObservationLayout, settings: Settings, tensors: Tensors):
        self.name = "router"
        here, there = RouterLayout(), int(tensors[LAYOUT].item())
        if there != here.version:
            raise IncompatibleError(
                f"The router was made for something else: router's layout {there} there and {here.version} here; "
                "train one for this."
            )
        self.settings = settings
        layer = {name: value for name, value in tensors.items() if name != LAYOUT}
        self._wanted = Mlp(layer, here.width, len(WEIGHTS))

    def initial_state(self, lanes: int) -> Floats:
        return np.zeros((lanes, len(WEIGHTS) + 1), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        wanted = np.clip(self._wanted(observation), -1.0, 1.0)
        last = np.where(state[:, -1:] > 0, state[:, :-1], wanted)
        action = last + np.float32(self.settings.smoothing) * (wanted - last)
        return action, np.concatenate([action, np.ones((len(action), 1), np.float32)], axis=1)

    def draw(self, graph: Graph) -> onnx.ModelProto:
        """The same as a graph."""
        wanted = graph.clip(self._wanted.draw(graph, "obs"), -1.0, 1.0)
        count = len(WEIGHTS)
        started = graph.op("Greater", graph.columns("state", count, count + 1), graph.constant(0.0))
        last = graph.op("Where", started, graph.columns("state", 0, count), wanted)
        step = graph.op("Mul", graph.op("Sub", wanted, last), graph.constant(self.settings.smoothing))
        action = graph.op("Add", last, step)
        return graph.model(action, graph.concatenate(action, graph.fill(1.0)))


def graph_of(layout: ObservationLayout, settings: Settings, tensors: Tensors) -> onnx.ModelProto:
    from helm_gym.policies.onnx_graph import Graph

    router = LearnedRouter(layout, settings, tensors)
    return router.draw(Graph("router", RouterLayout(), state=len(WEIGHTS) + 1, actions=len(WEIGHTS)))
