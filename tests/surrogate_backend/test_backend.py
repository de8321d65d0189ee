"""The surrogate passes the conformance suite of every backend, unchanged, and behaves as its docstrings say."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile, load
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX, WorkloadState
from surrogate_backend import checkpoint
from surrogate_backend.backend import SurrogateBackend
from tests.conformance.backend import BackendConformance


class TestSurrogate(BackendConformance):
    name = "surrogate"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load("cpu-small")


def served(backend: SurrogateBackend, path, alphas: list[float], seeds: np.ndarray) -> list:
    lanes = backend.spec.lanes
    backend.reset(path.at(0), seeds, np.full((lanes, 1), alphas[0]))
    return [backend.step(np.full((lanes, 1), a), path.at(t)) for t, a in enumerate(alphas)]


def test_a_lane_alone_is_bit_identical_to_itself_among_many_in_any_block(profile):
    """130 lanes fill two blocks and a part of a third; lanes of each are compared, requests and all."""
    seeds = np.arange(130)
    path = make_path("mixed", profile, seeds.tolist(), 12)
    alphas = [0.5, 0.52, 0.4, 0.4, 0.7, 0.7, 0.7, 0.2, 0.2, 0.3, 0.9, 0.9]
    many = served(SurrogateBackend(profile, lanes=130), path, alphas, seeds)
    for lane in (0, 1, 63, 64, 129):
        own = make_path("mixed", profile, [lane], 12)
        one = served(SurrogateBackend(profile), own, alphas, np.array([lane]))
        for a, b in zip(one, many, strict=True):
            np.testing.assert_array_equal(a.values[0], b.values[lane])
            np.testing.assert_array_equal(a.sojourn_ms[0], b.sojourn_ms[lane])
            np.testing.assert_array_equal(a.service_ms[0], b.service_ms[lane])


def test_single_requests_make_the_interval_that_is_reported(profile):
    path = make_path("burst", profile, [3], 20)
    for telemetry in served(SurrogateBackend(profile), path, [0.5] * 20, np.array([3])):
        service, sojourn = telemetry.service_ms[0, 0], telemetry.sojourn_ms[0, 0]
        assert telemetry["interval_service_ms"].item() == pytest.approx(service.mean(), rel=1e-4)
        assert telemetry["interval_sojourn_ms"].item() == pytest.approx(sojourn.mean(), rel=1e-4)
        assert telemetry["interval_p99_ms"].item() == pytest.approx(np.quantile(sojourn, 0.99), rel=1e-4)
        assert telemetry["interval_violations"].item() == pytest.approx((sojourn > profile.slo_ms).mean(), abs=1e-6)
        assert (sojourn >= service * 0.999).all()


def test_queues_follow_recorded_arrivals(profile):
    """The same services under arrivals all at once, and far apart: a queue, and none."""
    path = make_path("steady", profile, [1], 1)
    state = path.at(0)
    spent = {}
    for name, gap in (("apart", 1.0), ("together", 1e-6)):
        recorded = WorkloadState(state.values, np.full((1, profile.interval.requests), gap))
        backend = SurrogateBackend(profile)
        backend.reset(recorded, np.array([1]), np.full((1, 1), 0.5))
        spent[name] = backend.step(np.full((1, 1), 0.5), recorded)
    np.testing.assert_allclose(spent["apart"].sojourn_ms, spent["apart"].service_ms, rtol=1e-5)
    np.testing.assert_allclose(
        spent["together"].sojourn_ms[0, 0], np.cumsum(spent["together"].service_ms[0, 0]), rtol=1e-2
    )


def test_it_says_where_it_extrapolates(profile):
    backend = SurrogateBackend(profile)
    path = make_path("burst", profile, [0], 30)
    flags = [t.extrapolating.item() for t in served(backend, path, [0.5] * 30, np.array([0]))]
    assert np.mean(flags) < 0.1
    values = path.at(0).values.copy()
    values[:, INDEX["delta_tokens"]] = 60.0  # far beyond what any log holds
    strange = WorkloadState(values, path.at(0).gaps_s)
    assert backend.step(np.full((1, 1), 0.5), strange).extrapolating.item()


def test_a_checkpoint_of_another_profile_or_a_broken_one_is_refused(profile, tmp_path: pathlib.Path):
    other = dataclasses.replace(profile, name="other", slo_ms=20.0)
    with pytest.raises(InvalidInputError, match="another profile"):
        SurrogateBackend(other, checkpoint=checkpoint.find("cpu-small-v2", other))
    with pytest.raises(InvalidInputError, match="No surrogate is shipped"):
        SurrogateBackend(other)
    shipped = checkpoint.find(None, profile)
    for name in (checkpoint.CARD, checkpoint.WEIGHTS):
        (tmp_path / name).write_bytes((shipped / name).read_bytes())
    weights = (tmp_path / checkpoint.WEIGHTS).read_bytes()
    (tmp_path / checkpoint.WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InvalidInputError, match="cannot be read"):
        SurrogateBackend(profile, checkpoint=tmp_path)


def test_stepping_needs_no_torch():
    """Which would take three hundred megabytes and seconds in every process."""
    code = "import sys, surrogate_backend.open_surrogate; assert not {'torch', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_rung_is_refused(profile):
    with pytest.raises(InvalidInputError, match="stands for"):
        SurrogateBackend(profile, of="surrogate")
