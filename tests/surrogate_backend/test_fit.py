"""A fit from nothing: a small log, a few steps, a checkpoint that a backend opens; and logs that are refused."""

from __future__ import annotations

import json
import pathlib

import gymnasium
import numpy as np
import pytest
from typer.testing import CliRunner

from helm_gym import files
from helm_gym.backend import open_backend
from helm_gym.cli.main import app
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.profile import Profile, load
from helm_gym.workload.regimes import make_path
from surrogate_backend import checkpoint
from surrogate_backend.backend import SurrogateBackend
from surrogate_backend.data.collect import Plan, collect
from surrogate_backend.fit import Settings, fit


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load("cpu-small")


@pytest.fixture(scope="module")
def log(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Seventeen settings, each served twice."""
    folder = tmp_path_factory.mktemp("log")
    collect(Plan(profile, "modelled", "train", 30, 5), folder, 34)
    return folder


SHORT = Settings(steps=6, batch=4, evaluate_every=3, threads=1)


def test_a_fit_writes_what_a_backend_steps(profile: Profile, log: pathlib.Path, tmp_path: pathlib.Path) -> None:
    seen: list[tuple[int, int]] = []
    card = fit(profile, [log], tmp_path / "fit", SHORT, lambda step, steps, losses: seen.append((step, steps)))
    assert seen[-1] == (6, 6)
    assert card["logs"][0]["rung"] == "modelled" and card["logs"][0]["intervals"] == 34 * 30
    assert json.loads((tmp_path / "fit" / checkpoint.CARD).read_text()) == card
    assert list((tmp_path / "fit" / "tensorboard").iterdir())
    backend = SurrogateBackend(profile, lanes=2, checkpoint=tmp_path / "fit", of="modelled")
    path = make_path("burst", profile, [0, 1], 5)
    backend.reset(path.at(0), np.arange(2), np.full((2, 1), 0.5))
    telemetry = backend.step(np.full((2, 1), 0.5), path.at(0))
    # Untrained networks leave the fluid's estimates as they are, and those are near.
    assert telemetry["service_mean_ms"] == pytest.approx(profile.slo_ms / 5, rel=0.5)


def test_a_surrogate_of_ones_own_is_taken_wherever_a_backend_has_a_name(
    log: pathlib.Path, profile: Profile, tmp_path: pathlib.Path
) -> None:
    fit(profile, [log], tmp_path / "fit", SHORT)
    name = f"surrogate:{tmp_path / 'fit'}"
    few = ("--task", "burst-v0", "--seeds", "1", "--horizon", "4", "--json", "--quiet")
    done = CliRunner().invoke(app, ["evaluate", "static:0.5", "pid", "--backend", name, *few])
    assert done.exit_code == 0 and json.loads(done.stdout)["rung"] == "surrogate", done.output
    env = gymnasium.make("helm/Burst-v0", backend=name, intervals=3)
    shipped = gymnasium.make("helm/Burst-v0", intervals=3)
    ours, theirs = (each.reset(seed=0)[0] for each in (env, shipped))
    assert not np.array_equal(ours, theirs), "these are other networks"
    arguments = ["train", "ppo", "--task", "mixed-v0", "--out", str(tmp_path / "ppo"), "--steps", "16", "--quiet"]
    small = {"lanes": 2, "episode": 8, "n_steps": 4, "batch_size": 8, "hidden": 8, "backend": name}
    settings = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(app, [*arguments, *settings])
    assert done.exit_code == 0, done.output
    with pytest.raises(UnknownNameError, match="did you mean 'cpu-small-v2'"):
        open_backend("surrogate:cpu-small-v9", profile)


def test_the_same_seed_fits_the_same(profile: Profile, log: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        fit(profile, [log], tmp_path / name, SHORT)
    a, b = (checkpoint.load(tmp_path / name, profile).tensors for name in ("a", "b"))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_kill_between_weights_and_card_leaves_no_card_of_other_weights(
    tmp_path: pathlib.Path, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checkpoint_of(number: int) -> checkpoint.Checkpoint:
        card = {"format": checkpoint.FORMAT, "profile_fingerprint": profile.fingerprint, "number": number}
        return checkpoint.Checkpoint({"x": np.full(3, number, np.float32)}, card)

    checkpoint.save(tmp_path, checkpoint_of(1))
    write = files.write

    def killed(path: pathlib.Path, content: str | bytes) -> None:
        if path.name == checkpoint.CARD:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, checkpoint_of(2))
    with pytest.raises(InvalidInputError, match="fit it again"):
        checkpoint.load(tmp_path, profile)
    checkpoint.save(tmp_path, checkpoint_of(2))
    assert checkpoint.load(tmp_path, profile).card["number"] == 2


def test_what_no_surrogate_can_be_fitted_to_is_not_logged_for_one(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidInputError, match="serves micro-batches of 8; a surrogate is fitted to one"):
        collect(Plan(load("h200"), "modelled", "train", 30, 5), tmp_path / "log", 34)
    assert not (tmp_path / "log").exists()


def test_logs_that_hold_too_little_are_refused(profile: Profile, tmp_path: pathlib.Path) -> None:
    few = tmp_path / "few"
    collect(Plan(profile, "modelled", "train", 4, 5), few, 2)
    with pytest.raises(InvalidInputError, match="every sixteenth is held out"):
        fit(profile, [few], tmp_path / "out", SHORT)
    with pytest.raises(InvalidInputError, match="no folder"):
        fit(profile, [tmp_path / "nowhere"], tmp_path / "out", SHORT)
