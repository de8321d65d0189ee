"""Pictures of an episode: what they say, and that they fit."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import helm_gym  # noqa: F401  (registers the environments)
from helm_gym.envs.partition import PartitionEnv
from helm_gym.envs.render import SIZE_PX, TEXT_INTERVALS, sparkline
from helm_gym.errors import UnknownNameError
from helm_gym.profile import load

UP = np.ones(1, np.float32)


def test_text_says_what_is_shown_and_grows_to_a_width() -> None:
    env = gym.make("helm/Burst-v0", render_mode="ansi")
    env.reset(seed=0)
    text = env.render()
    assert isinstance(text, str)
    assert text.splitlines()[0] == "burst-v0 · surrogate · interval 0 of 480 · calm"
    for _ in range(70):
        env.step(UP)
    text = env.render()
    assert isinstance(text, str)
    lines = text.splitlines()
    assert [line[:13].strip() for line in lines[1:-1]] == [
        "alpha",
        "EMB hit rate",
        "KV hit rate",
        "mean latency",
        "P99 latency",
    ]
    assert "0.95 → 0.95" in lines[1] and lines[1].endswith("█" * 10)
    assert {len(line) for line in lines[1:-1]} == {27 + TEXT_INTERVALS}
    assert lines[-1].startswith(f"SLO {load('cpu-small').slo_ms:.1f} ms, missed by ")


def test_bars_span_their_range() -> None:
    assert sparkline(np.array([0.0, 0.5, 1.0]), 0, 1) == "▁▅█"
    assert sparkline(np.array([-9.0, 9.0]), 0, 1) == "▁█"


def test_image_changes_with_the_episode_and_nothing_is_cut_off() -> None:
    env = gym.make("helm/Burst-v0", render_mode="rgb_array")
    frames: list[np.ndarray] = []
    for episode in range(2):
        env.reset(seed=0)
        frames.append(np.asarray(env.render()))
        for _ in range(40 if episode == 0 else 0):
            env.step(UP)
        frames.append(np.asarray(env.render()))
    for frame in frames:
        assert frame.dtype == np.uint8
        assert frame.shape == (SIZE_PX[1], SIZE_PX[0], 3)
        for edge in (frame[:2], frame[-2:], frame[:, :2], frame[:, -2:]):
            assert (edge == 255).all()
    first, later, fresh, _ = frames
    assert not np.array_equal(first, later)
    assert np.array_equal(first, fresh)  # an episode leaves nothing behind in the next one's picture


def test_a_vector_environment_draws_each_lane() -> None:
    env = gym.make_vec("helm/Burst-v0", num_envs=2, render_mode="ansi")
    env.reset(seed=0)
    texts = env.render()
    assert texts is not None and ["lane 0" in texts[0], "lane 1" in texts[1]] == [True, True]
    images = gym.make_vec("helm/Burst-v0", num_envs=2, render_mode="rgb_array")
    images.reset(seed=0)
    frames = images.render()
    assert frames is not None and len(frames) == 2 and not np.array_equal(frames[0], frames[1])


def test_render_modes_that_there_are_not() -> None:
    with pytest.raises(UnknownNameError, match="Unknown render_mode 'ansii'; did you mean 'ansi'"):
        PartitionEnv(render_mode="ansii")
    env = gym.make("helm/Burst-v0").unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None
