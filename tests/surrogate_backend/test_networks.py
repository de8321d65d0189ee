"""The compiled networks say what torch says, and noise and requests are drawn as they are meant."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helm_gym.profile import Profile, load
from helm_gym.workload.regimes import make_path
from surrogate_backend import checkpoint
from surrogate_backend.kernels import fields, networks, requests
from surrogate_backend.kernels.functions import LANES, kernel
from surrogate_backend.kernels.inputs import follow
from surrogate_backend.layout import CACHE_OUTPUTS, HURDLED, RUNGS, USER_OUTPUTS, Sizes
from surrogate_backend.network import Networks, outputs
from surrogate_backend.noise import FIELDS, fit_noise

T, COUNT = 24, 3


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load("cpu-small")


@kernel
def _run(weights, x, hidden, t, v, y, f, hurdle, out, n):
    for k in range(x.shape[0]):
        networks.run_networks(weights, x[k], hidden, t, v, y[k], networks.WIDTHS, n, LANES)
        fields.predict(y[k], f[k], hurdle, out[k], n, LANES)


@pytest.mark.parametrize("rung", RUNGS)
def test_compiled_networks_and_fields_are_those_of_torch(profile: Profile, rung: str) -> None:
    shipped = checkpoint.load(checkpoint.find(None, profile), profile)
    net = Networks(Sizes())
    net.load_state_dict({k[4:]: torch.tensor(v) for k, v in shipped.tensors.items() if k.startswith("net.")})
    path = make_path("mixed", profile, list(range(COUNT)), T)
    alpha = np.linspace(0.2, 0.8, T) * np.ones((COUNT, 1))
    x, estimates = follow(profile, path.values, alpha, np.zeros((COUNT, T)))
    with torch.no_grad():
        said = net(torch.tensor(x.swapaxes(0, 1)), torch.full((COUNT,), RUNGS.index(rung)))
        means, spreads, knots = outputs(said, torch.tensor(estimates.swapaxes(0, 1)))

    def rows(array: np.ndarray) -> np.ndarray:
        padded = np.pad(array, ((0, LANES - COUNT), (0, 0), (0, 0)), mode="edge")
        return np.ascontiguousarray(padded.transpose(1, 2, 0)).reshape(T, -1)

    scratch = [np.zeros(networks.SCRATCH * LANES, np.float32) for _ in range(2)]
    y = np.zeros((T, networks.OUTPUTS * LANES), np.float32)
    out = np.zeros((T, fields.FIELDS * LANES), np.float32)
    hidden = np.zeros(networks.STATE * LANES, np.float32)
    fed = np.pad(rows(x), ((0, 0), (0, (networks.INPUTS - x.shape[2]) * LANES)))
    weights, hurdle = networks.pack(shipped.tensors, rung), shipped.tensors["hurdle"]
    _run(weights, fed, hidden, *scratch, y, rows(estimates), hurdle, out, COUNT)

    def lanes(array: np.ndarray, row: int) -> np.ndarray:
        return array.reshape(T, -1, LANES)[:, row, :COUNT]

    for j in range(USER_OUTPUTS):
        np.testing.assert_allclose(lanes(y, j), said.users[..., j], atol=2e-5)
    for j in range(CACHE_OUTPUTS):
        np.testing.assert_allclose(lanes(y, USER_OUTPUTS + j), said.caches[..., j], atol=2e-5)
    named = {
        "history": fields.LENGTH, "unique": fields.UNIQUE, "returning": fields.RETURNING, "service": fields.TIME,
        "kv_hit": fields.HIT, "emb_hit": fields.EMB_HIT, "recomputed": fields.AGAIN, "emb_gain": fields.GAINS,
        "kv_loss": fields.GAINS + 3, "emb_empty": fields.EMB_EMPTY, "kv_empty": fields.KV_EMPTY,
        "backlog": fields.BACKLOG, "refilled": fields.REFILLED,
    }  # fmt: skip
    for name, below in zip(HURDLED, shipped.tensors["hurdle"], strict=True):
        means[name] = torch.where(means[name] >= float(below), means[name], 0.0)
    for name, row in named.items():
        np.testing.assert_allclose(lanes(out, row), means[name], rtol=1e-4, atol=1e-6, err_msg=name)
        if name in spreads:
            np.testing.assert_allclose(lanes(out, fields.SPREADS + row), spreads[name], rtol=1e-3, err_msg=name)
    for k in range(9):
        np.testing.assert_allclose(lanes(out, fields.PREDICTED + k), means["predicted"][..., k], rtol=1e-4)
    for k in range(knots.shape[-1]):
        np.testing.assert_allclose(lanes(out, fields.KNOT + k), knots[..., k], rtol=1e-3, atol=1e-5)


@kernel
def _draw(keys, uniform, exponential, normal):
    for i in range(len(uniform)):
        bits = requests.hashed(keys[0], keys[1], np.uint32(i))
        uniform[i] = requests.uniform(bits)
        exponential[i] = requests.exponential(requests.uniform(bits))
        normal[i] = requests.normal(bits)


def test_counted_randomness_has_the_distributions_it_is_meant_to_have() -> None:
    uniform, exponential, normal = (np.zeros(200_000, np.float32) for _ in range(3))
    _draw(requests.make_keys(np.array([7]))[:, 0].copy(), uniform, exponential, normal)
    np.testing.assert_allclose(exponential, -np.log(uniform.astype(np.float64)), rtol=1e-4, atol=1e-5)
    assert uniform.mean() == pytest.approx(0.5, abs=0.003)
    assert np.histogram(uniform, 20, (0, 1))[0] == pytest.approx(10_000, rel=0.05)
    assert (normal.mean(), normal.std()) == pytest.approx((0.0, 1.0), abs=0.01)
    assert np.corrcoef(uniform[:-1], uniform[1:])[0, 1] == pytest.approx(0.0, abs=0.01)


def test_lanes_with_neighbouring_seeds_share_no_randomness() -> None:
    keys = requests.make_keys(np.arange(2000))
    assert len(np.unique(keys.T, axis=0)) == 2000
    drawn = np.zeros((3, 3, 5000), np.float32)
    for lane in range(3):
        _draw(keys[:, lane].copy(), *drawn[lane])
    assert np.abs(np.corrcoef(drawn[:, 0]) - np.eye(3)).max() < 0.05


def test_noise_is_split_into_what_stays_and_what_is_new() -> None:
    """Differences of a known persistent factor and independent draws, averaged over a window as a log has them."""
    rng, window, persistence, t, pairs = np.random.default_rng(0), 4, 0.98, 800, 60
    factor = np.zeros((t, pairs))
    factor[0] = rng.normal(size=pairs)
    for k in range(1, t):
        factor[k] = persistence * factor[k - 1] + np.sqrt(1 - persistence**2) * rng.normal(size=pairs)
    slow = np.linspace(0.2, 0.8, len(FIELDS))
    fast = rng.normal(size=(t + window - 1, pairs, len(FIELDS)))
    fast = sum(fast[k : k + t] for k in range(window)) / window
    found = fit_noise(factor[..., None] * slow + fast, window)
    assert found.persistence[0] == pytest.approx(persistence, abs=0.02)
    np.testing.assert_allclose(found.slow @ found.slow.T, np.outer(slow, slow), atol=0.12)
    np.testing.assert_allclose(np.diag(found.fast @ found.fast.T), 1.0, atol=0.3)
