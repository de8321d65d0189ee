"""Regimes that are fitted to a log: parameters as in the log, for environments, tasks and commands."""

from __future__ import annotations

import json
import pathlib
import shutil

import gymnasium
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from helm_gym import profile
from helm_gym.cli.main import app
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.observation import ObservationLayout
from helm_gym.policies.from_run import shipped_folder
from helm_gym.tasks import all_tasks, find_task
from helm_gym.workload import fitted
from helm_gym.workload.description import Description, describe
from helm_gym.workload.logs import read_log
from helm_gym.workload.regimes import make_path
from helm_gym.workload.synthesis import Synthesis, synthesize, write_log
from helm_gym.workload.visits import visits_of

KNOWN = Synthesis(requests=12_000, arrival_rate_rps=0.004, hot_share=0.7, hot_users=40, turnover=0.3, new_share=0.9)
PROFILE = profile.load("cpu-small")


def helm(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("fitted") / "known.csv"
    write_log(synthesize(KNOWN, np.random.default_rng(0)), path, "taobao")
    return path


@pytest.fixture(scope="module")
def described(log: pathlib.Path) -> Description:
    return describe(visits_of(read_log(log), 60.0), KNOWN.windows)


@pytest.fixture(scope="module")
def regime(log: pathlib.Path, described: Description) -> str:
    path = log.with_suffix(".yaml")
    fitted.save(fitted.fit(described, "known"), path)
    return f"fitted:{path}"


def test_a_fitted_regime_has_the_parameters_of_its_log(regime: str) -> None:
    path = make_path(regime, PROFILE, range(4), 600)
    assert path.parameter("hot_share").mean() == pytest.approx(KNOWN.hot_share, abs=0.03)
    assert path.parameter("hot_users").mean() == pytest.approx(KNOWN.hot_users, abs=3)
    assert path.parameter("item_zipf").mean() == pytest.approx(KNOWN.item_zipf, abs=0.06)
    assert path.parameter("delta_tokens").mean() == pytest.approx(KNOWN.delta_tokens, rel=0.05)
    # A window of 1,000 requests is twenty intervals of fifty, in which as many hot users leave as in the log's.
    kept = (1 - path.parameter("turnover").mean()) ** 20
    assert 1 - kept == pytest.approx(KNOWN.turnover, abs=0.06)


def test_an_episode_is_its_seeds_and_starts_anywhere(regime: str) -> None:
    first, again = make_path(regime, PROFILE, [5, 6], 40), make_path(regime, PROFILE, [6], 40)
    np.testing.assert_array_equal(first.values[1], again.values[0])
    assert (first.values[0] != first.values[1]).any()


def test_busy_windows_get_more_requests(described: Description) -> None:
    made = fitted.fit(described, "known", window_intervals=50)
    quiet = fitted.FittedRegime(
        made.log,
        made.requests,
        tuple(fitted.FittedWindow(rate, 0.5, 20, 0.1, 0.5, 100, 4, 0.9) for rate in (0.5, 1.25)),
        window_intervals=50,
    )
    rates = quiet.draw(PROFILE, [0], 100, None).parameter("arrival_rate_rps")
    assert rates.max() / rates.min() == pytest.approx(2.5, rel=0.05)


def test_what_is_held_out_is_not_in_the_regime(described: Description) -> None:
    first, last = fitted.fit(described, "known", 0.0, 0.75), fitted.fit(described, "known", 0.75)
    assert (len(first.windows), len(last.windows)) == (9, 3)
    assert first.windows[0].hot_share == pytest.approx(described.windows[0].hot_share, rel=1e-5)
    assert last.windows[-1].hot_share == pytest.approx(described.windows[-1].hot_share, rel=1e-5)
    for part in ((0.5, 0.5), (0.0, 0.05), (-1.0, 1.0)):
        with pytest.raises(InvalidInputError, match="give 2 or more"):
            fitted.fit(described, "known", *part)


def test_environments_and_tasks_take_it(regime: str) -> None:
    env = gymnasium.make("helm/Partition-v0", regime=regime, intervals=3)
    env.reset(seed=0)
    assert np.isfinite(env.step(env.action_space.sample())[1])
    task = find_task(regime)
    assert task.regime == regime and task.name == "fitted-known-v0"
    assert all(known.name != task.name for known in all_tasks())


def test_a_log_without_users_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "all.csv"
    write_log(synthesize(Synthesis(requests=500), np.random.default_rng(0)), path, "open-bandit")
    with pytest.raises(InvalidInputError, match="does not tell hot_share: it has no users"):
        fitted.fit(describe(visits_of(read_log(path))), "all")


def test_a_file_that_is_none_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("log: a\nrequests: 10\nwindow: []\n", encoding="utf-8")
    with pytest.raises(UnknownNameError, match="did you mean 'windows'"):
        find_task(f"fitted:{path}")
    path.write_text("log: a\nrequests: 10\nwindows: []\n", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="has 2 to 500 windows"):
        make_path(f"fitted:{path}", PROFILE, [0], 3)
    with pytest.raises(InvalidInputError, match="write 'fitted:FILE'"):
        find_task("fitted")


def test_commands_fit_a_log_and_evaluate_on_it(log: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "deep" / "mine.yaml"
    made = helm("workload", "fit", log, out, "--session", 60, "--windows", 6, "--until", 0.5, "--json")
    assert made.exit_code == 0 and len(json.loads(made.stdout)["windows"]) == 3
    few = ("--seeds", "1", "--horizon", "4", "--quiet", "--json")
    scored = helm("evaluate", "pid", "--task", f"fitted:{out}", *few)
    assert scored.exit_code == 0 and json.loads(scored.stdout)["task"] == "fitted-known-v0"


def test_a_run_of_a_fitted_task_is_exported(tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(shipped_folder("pid", "agents", ObservationLayout(PROFILE)), run)
    card = json.loads((run / "card.json").read_text(encoding="utf-8"))
    (run / "card.json").write_text(json.dumps(card | {"task": "fitted-known-v0"}), encoding="utf-8")
    out = tmp_path / "policy.onnx"
    exported = helm("export", run, "--out", out, "--json")
    assert exported.exit_code == 0, exported.stderr
    assert json.loads(exported.stdout)["task"] == "fitted-known-v0" and out.is_file()
