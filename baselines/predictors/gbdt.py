"""Gradient-boosted trees (LightGBM) that predict alpha* from the workload's columns and from how they change."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from baselines.predictors.examples import BLOCK, Examples, errors, gather
from baselines.predictors.features import Follower, Traces, WorkloadFeatures, check_following, following_space
from baselines.predictors.trees import boost
from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats
from helm_gym.ranges import Within
from helm_gym.training.run_folder import Tensors
from helm_gym.training.search_space import Trial
from helm_gym.training.trainable import Trainable, Training

if TYPE_CHECKING:
    import onnx

_BOOSTING = 1  # a purpose of the training's generator; examples.py has another
_INTEGERS = ("roots", "feature", "left", "right")
_NODES = ("feature", "threshold", "left", "right", "value")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Hyper-parameters.

    Attributes:
        trees: at most; boosting ends where the held-out error has not fallen for ``patience`` trees.
        leaves: of a tree, at most.
        leaf_size: decisions in a leaf, at least.
        learning_rate: of boosting.
        smoothing: weight of the new prediction.
        dead_band: how near to the prediction the target may stay, of alpha.
        examples: another run's folder, whose examples are taken in place of new ones.
    """

    trees: Annotated[int, Within(1, 100_000)] = 200
    leaves: Annotated[int, Within(2, 10_000)] = 20
    leaf_size: Annotated[int, Within(1, 2**30)] = 100
    learning_rate: Annotated[float, Within(0, 10, above=True)] = 0.08
    patience: Annotated[int, Within(1, 100_000)] = 30
    smoothing: Annotated[float, Within(0, 1, above=True)] = 0.4
    dead_band: Annotated[float, Within(0, 1)] = 0.02
    examples: str = ""

    def __post_init__(self) -> None:
        if self.trees < 1 or self.leaves < 2 or self.leaf_size < 1 or self.learning_rate <= 0 or self.patience < 1:
            raise InvalidInputError("Trees need at least 1 tree, 2 leaves, 1 decision a leaf, and a positive rate.")
        check_following(self.smoothing, self.dead_band)

    @staticmethod
    def space(trial: Trial) -> dict[str, Any]:
        return {
            "trees": trial.suggest_int("trees", 50, 400, log=True),
            "leaves": trial.suggest_int("leaves", 4, 64, log=True),
            "leaf_size": trial.suggest_int("leaf_size", 20, 500, log=True),
            "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.3, log=True),
            **following_space(trial),
        }


class GbdtPolicy:
    """Follows what the trees predict.

    State: the features' traces; the smoothed prediction, and whether there is one.

    Raises:
        KeyError, ValueError: tensors that are no trees.
    """

    def __init__(self, layout: ObservationLayout, settings: Settings, tensors: Tensors):
        self.name = "gbdt"
        self.traces = Traces(WorkloadFeatures(layout))
        self.follow = Follower(layout, settings.smoothing, settings.dead_band)
        kinds = {name: np.int32 if name in _INTEGERS else np.float32 for name in ("roots", *_NODES)}
        self.trees = {name: np.ascontiguousarray(tensors[name], kind) for name, kind in kinds.items()}
        _check(self.trees, self.traces.width)

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, self.traces.state + Follower.state), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        means, following = state[:, : self.traces.state], state[:, self.traces.state :]
        features, means = self.traces(observation, means, following[:, 1:] > 0)
        action, following = self.follow(observation, self.predict(features), following)
        return action, np.concatenate([means, following], axis=1)

    def predict(self, features: Floats) -> Floats:
        """alpha* (rows,) of features (rows, width)."""
        prediction = np.empty(len(features), np.float32)
        t = self.trees
        boost(features, t["roots"], t["feature"], t["threshold"], t["left"], t["right"], t["value"], prediction)
        return prediction


def _check(arrays: dict[str, NDArray[Any]], width: int) -> None:
    """A kernel looks at nothing twice: what could send it out of its arrays, or in circles, is refused here."""
    nodes, count = np.arange(len(arrays["feature"])), len(arrays["feature"])
    inner = arrays["feature"] >= 0
    onwards = all(((arrays[side] > nodes) & (arrays[side] < count))[inner].all() for side in ("left", "right"))
    sizes = {len(arrays[name]) for name in _NODES} == {count} and all(a.ndim == 1 for a in arrays.values())
    roots = arrays["roots"]
    if not (sizes and onwards and (arrays["feature"] < width).all() and ((roots >= 0) & (roots < count)).all()):
        raise ValueError(f"its nodes are no trees over {width} features")


def fit(examples: Examples, layout: ObservationLayout, settings: Settings, seed: int) -> dict[str, NDArray[Any]]:
    """The trees' tensors, fitted to the mean absolute error, which is what the gap to alpha* is."""
    import lightgbm

    traces = Traces(WorkloadFeatures(layout))
    parts = [_rows(traces, examples.part(held_out)) for held_out in (False, True)]
    fitted, held_out = (lightgbm.Dataset(x, y, free_raw_data=False) for x, y in parts)
    booster = lightgbm.train(
        {
            "objective": "regression_l1",
            "num_leaves": settings.leaves,
            "min_data_in_leaf": settings.leaf_size,
            "learning_rate": settings.learning_rate,
            "feature_fraction": 0.7,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "seed": seed,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        },
        fitted,
        num_boost_round=settings.trees,
        valid_sets=[held_out],
        callbacks=[lightgbm.early_stopping(settings.patience, verbose=False)],
    )
    grown = booster.dump_model(num_iteration=booster.best_iteration)["tree_info"]
    return flatten([tree["tree_structure"] for tree in grown])


def _rows(traces: Traces, examples: Examples) -> tuple[Floats, Floats]:
    """Features (decisions, width) of episodes, as the policy would see them, and the optimum of each."""
    observation = examples.observation
    means, seen = np.zeros((len(observation), traces.state), np.float32), []
    for t in range(observation.shape[1]):
        features, means = traces(observation[:, t], means, np.full((len(observation), 1), t > 0))
        seen.append(features)
    return np.stack(seen, axis=1).reshape(-1, traces.width), examples.alpha_star.ravel()


def flatten(grown: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    """LightGBM's nested trees as the arrays that ``boost`` takes."""
    nodes: dict[str, list[float]] = {name: [] for name in _NODES}
    roots = []

    def add(node: dict[str, Any]) -> int:
        place = len(nodes["feature"])
        leaf = "leaf_value" in node
        own = (
            (-1, 0.0, place, place, node["leaf_value"])
            if leaf
            else (node["split_feature"], node["threshold"], 0, 0, 0.0)
        )
        for name, value in zip(_NODES, own, strict=True):
            nodes[name].append(value)
        if not leaf:
            nodes["left"][place], nodes["right"][place] = add(node["left_child"]), add(node["right_child"])
        return place

    for tree in grown:
        roots.append(add(tree))
    threshold = np.array(nodes["threshold"])
    rounded = threshold.astype(np.float32)
    # Rounded down: then a float32 is at most the threshold exactly where it was at most LightGBM's.
    rounded = np.where(rounded > threshold, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    kinds = {name: np.int32 if name in _INTEGERS else np.float32 for name in _NODES}
    arrays: dict[str, NDArray[Any]] = {name: np.array(nodes[name], kinds[name]) for name in _NODES}
    return arrays | {"roots": np.array(roots, np.int32), "threshold": rounded}


def _graph(layout: ObservationLayout, settings: Settings, tensors: Tensors) -> onnx.ModelProto:
    """All trees at once, a level a time: a leaf leads to itself."""
    from helm_gym.policies.onnx_graph import Graph

    policy = GbdtPolicy(layout, settings, tensors)
    arrays, split = policy.trees, policy.traces.state
    graph = Graph("gbdt", layout, state=split + Follower.state)
    op, constant = graph.op, graph.constant
    started = graph.columns("state", split + 1, split + 2)
    features, means = policy.traces.draw(graph, graph.columns("state", 0, split), started)

    held = {name: constant(arrays[name]) for name in ("threshold", "value")}
    held["feature"] = constant(np.maximum(arrays["feature"], 0), np.int64)
    held |= {name: constant(arrays[name], np.int64) for name in ("left", "right")}
    lanes = op("Shape", "obs", start=0, end=1)
    shape = op("Concat", lanes, constant([len(arrays["roots"])], np.int64), axis=0)
    node = op("Expand", constant(arrays["roots"][None], np.int64), shape)
    for _ in range(_depth(arrays)):
        seen = op("GatherElements", features, op("Gather", held["feature"], node), axis=1)
        goes_left = op("LessOrEqual", seen, op("Gather", held["threshold"], node))
        node = op("Where", goes_left, op("Gather", held["left"], node), op("Gather", held["right"], node))
    prediction = op("ReduceSum", op("Gather", held["value"], node), constant([1], np.int64), keepdims=1)
    action, goal = policy.follow.draw(graph, prediction, graph.columns("state", split, split + 1), started)
    return graph.model(action, graph.concatenate(means, goal, graph.fill(1.0)))


def _depth(arrays: dict[str, NDArray[Any]]) -> int:
    """How many splits lie above the deepest leaf."""
    depth, level = 0, arrays["roots"]
    while (arrays["feature"][level] >= 0).any():
        level = np.unique(np.concatenate([arrays["left"][level], arrays["right"][level]]))
        depth += 1
    return depth


def _train(training: Training) -> Tensors:
    settings: Settings = training.settings
    examples = gather(training, settings.examples)
    training.progress(training.steps, training.steps, "boosting")
    tensors = fit(examples, training.layout, settings, int(training.generator(_BOOSTING).integers(2**31)))
    policy, judged = GbdtPolicy(training.layout, settings, tensors), examples.part(held_out=True)
    predicted = policy.predict(_rows(policy.traces, judged)[0])
    training.facts |= errors(predicted.reshape(judged.alpha_star.shape), judged)
    return tensors


GBDT = Trainable(
    "gbdt",
    Settings,
    steps=8 * BLOCK,
    train=_train,
    policy=GbdtPolicy,
    graph=_graph,
    round=lambda settings, task: BLOCK,
)
