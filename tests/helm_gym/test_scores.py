"""``helm_gym.evaluate``: whatever decides is evaluated in one call, and what comes back is a table, a page and JSON."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO

import helm_gym
from helm_gym import profile as profiles
from helm_gym.envs.discrete import DiscreteActions
from helm_gym.errors import HelmError, IncompatibleError, InvalidInputError, UnknownNameError
from helm_gym.evaluation import metrics
from helm_gym.evaluation.scores import Scores
from helm_gym.evaluation.statistics import paired_change
from helm_gym.observation import ObservationLayout
from helm_gym.policies.adapting import as_policy
from helm_gym.policy import Floats
from helm_gym.tasks import find_task
from tests.registering import Measured, give_name

LAYOUT = ObservationLayout(profiles.load("cpu-small"))
SHORT = dataclasses.replace(find_task("steady-v0"), warmup=2, settle=1, horizon=6)
BURST = dataclasses.replace(SHORT, name="burst-v0", regime="burst")


def towards_kv(observation: Floats) -> float:
    assert observation.shape == (LAYOUT.width,)
    return -1.0 if observation[LAYOUT.column("target_alpha")] > 0.3 else 0.0


@pytest.fixture(scope="module")
def scores() -> Scores:
    given = {"mine": towards_kv, "pid": "pid", "half": as_policy("static:0.5", LAYOUT)}
    return helm_gym.evaluate(given, SHORT, seeds=2)


def test_functions_names_and_policies_are_evaluated_together_and_print_as_a_table(scores: Scores) -> None:
    assert [row["name"] for row in scores.figures["policies"]] == ["mine", "pid", "half"]
    assert scores["mine"]["mean_alpha"]["value"] < scores["half"]["mean_alpha"]["value"] == 0.5
    printed = str(scores)
    assert printed == repr(scores) and "steady-v0 on cpu-small" in printed and "modelled rung, 2 seeds" in printed
    assert all(name in printed for name in ("mine", "pid", "half", "oracle", "mean"))
    with pytest.raises(UnknownNameError, match="did you mean 'mine'"):
        scores["mien"]


def test_page_is_written(scores: Scores, tmp_path: pathlib.Path) -> None:
    scores.write_report(tmp_path / "report.html")
    assert ">mine<" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_one_policy_and_its_own_name(scores: Scores) -> None:
    alone = helm_gym.evaluate(towards_kv, SHORT, seeds=[0, 1], references=False)
    (row,) = alone.figures["policies"]
    assert row["name"] == "towards_kv" and row["p99_ms"] == scores["mine"]["p99_ms"]


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        (lambda observation: "left", HelmError, "an action is one number"),
        (lambda observation: [0.1, 0.2], HelmError, "an action is one number"),
        (lambda observation: float("nan"), HelmError, "must be finite"),
        (3, InvalidInputError, "cannot be made of int"),
        ("pdi", UnknownNameError, "did you mean 'pid'"),
        ([], InvalidInputError, "at least one policy"),
    ],
)
def test_what_is_no_policy_is_refused(given: object, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        helm_gym.evaluate(given, SHORT, seeds=1, references=False)


def test_models_of_stable_baselines_are_policies() -> None:
    torch.set_num_threads(1)
    env = gymnasium.make("helm/Steady-v0", intervals=4)
    plain = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0)
    discrete = PPO("MlpPolicy", DiscreteActions(env), n_steps=8, batch_size=8, seed=0)
    evaluated = helm_gym.evaluate({"plain": plain, "discrete": discrete}, SHORT, seeds=2, references=False)
    assert [row["name"] for row in evaluated.figures["policies"]] == ["plain", "discrete"]
    seen = LAYOUT.low + np.random.default_rng(0).random((3, LAYOUT.width), np.float32)
    for model, values in ((plain, None), (discrete, np.linspace(-1, 1, 5))):
        policy = as_policy(model, LAYOUT)
        action, _ = policy.act(seen, policy.initial_state(3))
        said, _ = model.predict(seen, deterministic=True)
        assert np.allclose(action[:, 0], said.ravel() if values is None else values[said])
    cart = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8)
    with pytest.raises(IncompatibleError, match=r"trained on observations of shape \(4,\)"):
        as_policy(cart, LAYOUT)


def test_what_a_recurrent_model_remembers_is_the_policys_state() -> None:
    """Rows are independent, and a state can be handed back: the episode goes on as it did with the model's own."""
    env = gymnasium.make("helm/Steady-v0", intervals=4)
    model = RecurrentPPO("MlpLstmPolicy", env, n_steps=8, batch_size=8, seed=0, policy_kwargs={"lstm_hidden_size": 8})
    policy, rng = as_policy(model, LAYOUT), np.random.default_rng(0)
    state, memory = policy.initial_state(2), None
    for t in range(4):
        seen = rng.random((2, LAYOUT.width), np.float32)
        said, memory = model.predict(seen, memory, np.full(2, t == 0), deterministic=True)
        alone = policy.act(seen[1:], state[1:])
        action, state = policy.act(seen, state)
        assert np.allclose(action, said, atol=1e-6) and np.allclose(alone[0], action[1:], atol=1e-6)
    assert state.any()


def test_clusters_take_pairs_and_names() -> None:
    scores = helm_gym.evaluate([("static:0.5", "joint"), "pid+kv-aware"], BURST, cluster=2, seeds=1)
    assert [row["name"] for row in scores.figures["policies"]] == ["static:0.5+joint", "pid+kv-aware"]
    assert scores.figures["nodes"] == 2 and "burst-v0 on 2 nodes of cpu-small" in str(scores)
    with pytest.raises(InvalidInputError, match="needs a router"):
        helm_gym.evaluate([towards_kv], BURST, cluster=2, seeds=1)


def test_where_time_is_measured_policies_are_served_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval of each, from the first to the last, each on a backend of its own that changes with the seed."""
    give_name(monkeypatch, "backend", "real", Measured)
    served: list[tuple[str, int]] = []

    class Notes:
        def __init__(self, name: str):
            self.name = name

        def initial_state(self, rows: int) -> Floats:
            return np.zeros((rows, 1), np.float32)

        def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
            served.append((self.name, int(state[0, 0])))
            return np.zeros((len(observation), 1), np.float32), state + 1

    scores = helm_gym.evaluate([Notes("a"), Notes("b")], SHORT, backend="real", seeds=2, references=False)
    once = list(
        dict.fromkeys(served[: len(served) // 2])
    )  # of the first seed; some decisions are timed, and seen twice
    assert once == [(name, t) for t in range(SHORT.settle + SHORT.horizon) for name in ("a", "b")]
    assert scores.figures["in_turns"] and "served in turns" in str(scores)
    assert scores["a"]["p99_ms"] == scores["b"]["p99_ms"]
    alone = helm_gym.evaluate([Notes("a")], SHORT, backend="modelled", seeds=2, references=False)
    assert alone["a"]["p99_ms"] == scores["a"]["p99_ms"] and not alone.figures["in_turns"]


def test_a_metric_that_is_added_is_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """In the table, the JSON object, the page and the docs, for nodes and clusters."""
    added = metrics.by_seed("worst_ms", "worst ms", "the slowest answer", lambda _, e: np.nanmax(e.sojourn_ms, (1, 2)))
    monkeypatch.setitem(metrics.METRICS, added.key, added)
    for policies, cluster in (("static:0.5", None), ("static:0.5+joint", 2)):
        scores = helm_gym.evaluate(policies, BURST, seeds=1, cluster=cluster, references=False)
        assert scores[policies]["worst_ms"]["value"] > scores[policies]["p99_ms"]["value"]
        assert "worst" in str(scores)
        scores.write_report(tmp_path / "report.html")
        assert "worst ms" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "`worst_ms`" in metrics.markdown()


def test_docs_list_the_metrics() -> None:
    page = (pathlib.Path(__file__).parents[2] / "docs" / "figures.md").read_text(encoding="utf-8")
    assert metrics.markdown() in page, "docs/figures.md: replace its table of metrics by metrics.markdown()"


def test_change_is_paired_by_blocks() -> None:
    rng = np.random.default_rng(0)
    load = rng.gamma(1.0, 4.0, (3, 120)).repeat(10, axis=1)[:, :120]  # what both meet, ten intervals long
    figure = paired_change(0.9 * load, load, 10, np.random.default_rng(0))
    assert figure.value == pytest.approx(-0.1) and figure.low == pytest.approx(-0.1) == figure.high
    noisy = paired_change(load * rng.uniform(0.5, 1.5, load.shape), load, 10, np.random.default_rng(0))
    assert noisy.low < 0 < noisy.high


def test_readme_has_the_two_lines() -> None:
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert re.search(r"scores = helm_gym\.evaluate\(.*\nprint\(scores\)", readme)


def test_notes_stand_below_the_table_on_lines_of_their_own() -> None:
    shown = str(helm_gym.evaluate("static:0.2", "burst-v0", seeds=1, horizon=4))
    assert "\n–: the regime oracle gains too little" in shown and "\\n" not in shown
