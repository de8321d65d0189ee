"""Profiles: what is shipped loads, what is wrong is refused with one sentence that names file and key."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from helm_gym import profile as profiles
from helm_gym.errors import HelmError, InvalidInputError, UnknownNameError


@pytest.fixture
def data() -> dict:
    loaded: dict = yaml.safe_load((profiles.PROFILES / "cpu-small.yaml").read_text())
    return loaded


def load(tmp_path, data: object) -> profiles.Profile:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    return profiles.load(path)


@pytest.mark.parametrize("name", profiles.names())
def test_shipped_profiles_load_and_survive_a_round_trip(name, tmp_path):
    profile = profiles.load(name)
    assert profile.name == name
    profiles.save(profile, tmp_path / "copy.yaml")
    again = profiles.load(tmp_path / "copy.yaml")
    assert dataclasses.replace(again, cost=profile.cost) == profile
    assert again.cost.per_pair_ms == profile.cost.per_pair_ms
    fitted = dataclasses.replace(profile, cost=dataclasses.replace(profile.cost, mean_error=-0.01))
    profiles.save(fitted, tmp_path / "fitted.yaml")
    assert profiles.load(tmp_path / "fitted.yaml") == fitted


def test_pages_of_the_small_profile_are_as_designed():
    profile = profiles.load("cpu-small")
    assert (profile.tokens_per_page, profile.rows_per_page) == (16, 64)
    assert (profile.row_bytes, profile.kv_bytes_per_token) == (256, 1024)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("pool", "pagez"), 3, "did you mean 'pool.pages'"),
        (("pool", "pages"), "many", "pool.pages must be int"),
        (("pool", "pages"), 1.5, "pool.pages must be int"),
        (("pool", "pages"), 100, "cannot hold one user"),
        (("pool", "page_bytes"), 128, "cannot hold one token"),
        (("pool", "max_alpha"), 1.2, "max_alpha"),
        (("link", "bandwidth_gb_per_s"), float("nan"), "must be finite"),
        (("link", "modelled"), 1, "must be bool"),
        (("link", "bandwidth_gb_per_s"), 0, "must be above 0"),
        (("model", "layers"), 0, "must be above 0"),
        (("interval",), {"requests": 0, "window": 0}, "must be above 0"),
        (("population", "item_zipf"), 0.2, "item_zipf"),
        (("model", "dtype"), "float31", "did you mean 'float32'"),
        (("population", "mean_history"), 9000, "longer than the model's maximum"),
        (("population", "users"), -1, "must not be negative"),
        (("interval",), {"requests": 50, "window": 120}, "multiple"),
        (("model",), [1], "must be a mapping"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, data, path, value, sentence):
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(HelmError, match=sentence) as caught:
        load(tmp_path, data)
    assert "\n" not in str(caught.value)


def test_a_missing_key_a_missing_file_and_no_yaml(tmp_path, data):
    del data["link"]
    with pytest.raises(InvalidInputError, match="link is missing"):
        load(tmp_path, data)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        profiles.load(tmp_path / "absent.yaml")
    with pytest.raises(UnknownNameError, match="did you mean 'cpu-small'"):
        profiles.load("cpu-smal")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(InvalidInputError, match="not YAML"):
        profiles.load(tmp_path / "broken.yaml")
