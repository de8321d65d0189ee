"""What every backend must do, measured, modelled or learned: a suite to inherit.

class TestModelled(BackendConformance):
    name = "modelled"
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from helm_gym import profile as profiles
from helm_gym.backend import Backend, open_backend
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.telemetry import FIELDS, Telemetry
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX, PARAMETERS, WorkloadPath

INTERVALS = 8


class BackendConformance:
    """A subclass names a backend; ``lanes`` is what it can run at once."""

    name: str
    lanes = 3

    @pytest.fixture
    def profile(self) -> Profile:
        return profiles.load("cpu-small")

    @pytest.fixture
    def path(self, profile: Profile) -> WorkloadPath:
        return make_path("burst", profile, list(range(self.lanes)), INTERVALS)

    @pytest.fixture
    def backend(self, profile: Profile) -> Backend:
        return open_backend(self.name, profile, lanes=self.lanes)

    def alpha(self, value: float) -> np.ndarray:
        return np.full((self.lanes, 1), value)

    def run(self, backend: Backend, path: WorkloadPath, alphas: list[float], seed: int = 0) -> list[Telemetry]:
        backend.reset(path.at(0), np.arange(self.lanes) + seed, self.alpha(alphas[0]))
        return [backend.step(self.alpha(a), path.at(t % INTERVALS)) for t, a in enumerate(alphas)]

    def test_every_field_is_finite_and_within_its_bounds(self, backend, path):
        for telemetry in self.run(backend, path, [0.5, 0.2, 0.8, 0.5]):
            assert telemetry.values.shape[:2] == (self.lanes, 1)
            for field in FIELDS:
                values = telemetry[field.name]
                assert np.isfinite(values).all(), field.name
                assert (values >= field.low).all(), field.name
                assert (values <= field.high).all(), field.name

    def test_shares_and_latencies_are_consistent(self, backend, path):
        telemetry = self.run(backend, path, [0.5] * 5)[-1]
        np.testing.assert_allclose(telemetry["compute_share"] + telemetry["transfer_share"], 1.0, atol=1e-6)
        assert (telemetry["sojourn_mean_ms"] >= telemetry["service_mean_ms"] * 0.999).all()
        assert (telemetry["sojourn_p99_ms"] >= telemetry["sojourn_p50_ms"]).all()

    def test_alpha_moves_towards_its_target_within_the_page_budget(self, backend, path, profile):
        before = 0.5
        for telemetry in self.run(backend, path, [0.5, 0.7, 0.7, 0.3]):
            alpha = telemetry["alpha"]
            pages = np.round((alpha - before) * profile.pool.pages)
            assert (np.abs(pages) <= profile.pool.page_moves_per_interval).all()
            np.testing.assert_allclose(pages, telemetry["moved_pages"])
            before = alpha

    def test_a_larger_share_serves_its_cache_better(self, backend, path):
        few, many = (self.run(backend, path, [a] * 30)[-1] for a in (0.15, 0.85))
        assert (many["emb_hit_rate"] > few["emb_hit_rate"]).all()
        assert (many["kv_hit_rate"] < few["kv_hit_rate"]).all()

    def test_the_workload_is_fixed_by_the_seed_whatever_the_allocation(self, backend, path):
        a = self.run(backend, path, [0.2] * 4)
        b = self.run(backend, path, [0.2, 0.4, 0.6, 0.8])
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x["mean_history"], y["mean_history"])
            np.testing.assert_array_equal(x["unique_users"], y["unique_users"])

    def test_another_seed_is_another_workload(self, backend, path):
        a, b = self.run(backend, path, [0.5]), self.run(backend, path, [0.5], seed=100)
        assert (a[0]["mean_history"] != b[0]["mean_history"]).any()

    def test_a_deterministic_backend_repeats_itself_bit_for_bit(self, backend, path):
        if not backend.spec.deterministic:
            backend.close()
            return
        a, b = self.run(backend, path, [0.5, 0.3, 0.6]), self.run(backend, path, [0.5, 0.3, 0.6])
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x.values, y.values)

    def test_a_lane_does_not_depend_on_the_lanes_beside_it(self, backend, path, profile):
        if self.lanes == 1:
            with pytest.raises(InvalidInputError, match="lane"):
                open_backend(self.name, profile, lanes=2)
            return
        together = self.run(backend, path, [0.5, 0.3, 0.6])
        alone = open_backend(self.name, profile, lanes=1)
        one = WorkloadPath(path.values[1:2], path.gaps_s[1:2], path.segment[1:2], path.kind[1:2])
        alone.reset(one.at(0), np.array([1]), np.full((1, 1), 0.5))
        for t, a in enumerate([0.5, 0.3, 0.6]):
            telemetry = alone.step(np.full((1, 1), a), one.at(t))
            np.testing.assert_array_equal(telemetry.values[0], together[t].values[1])

    def test_a_snapshot_continues_bit_for_bit(self, backend, path):
        if not backend.spec.snapshots:
            with pytest.raises(InvalidInputError, match="snapshot"):
                backend.snapshot()
            return
        self.run(backend, path, [0.5, 0.3])
        saved = backend.snapshot()
        first = [backend.step(self.alpha(a), path.at(3)).values for a in (0.6, 0.4)]
        backend.restore(saved)
        again = [backend.step(self.alpha(a), path.at(3)).values for a in (0.6, 0.4)]
        np.testing.assert_array_equal(first, again)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 0.0, 1.0])
    def test_an_allocation_out_of_bounds_is_refused(self, backend, path, value):
        backend.reset(path.at(0), np.arange(self.lanes), self.alpha(0.5))
        with pytest.raises(InvalidInputError, match="alpha"):
            backend.step(self.alpha(value), path.at(0))

    def test_a_history_longer_than_the_model_is_refused(self, backend, path, profile):
        state = path.at(0)
        wrong = dataclasses.replace(state, values=state.values.copy())
        wrong.values[:, INDEX["mean_history"]] = profile.model.max_history + 1
        with pytest.raises(InvalidInputError, match="mean_history"):
            backend.reset(wrong, np.arange(self.lanes), self.alpha(0.5))

    @pytest.mark.parametrize("name", [parameter.name for parameter in PARAMETERS])
    def test_a_workload_below_its_bounds_is_refused(self, backend, path, name):
        """Kernels index and divide by these: a negative count would be read from the end of an array."""
        state = path.at(0)
        backend.reset(state, np.arange(self.lanes), self.alpha(0.5))
        wrong = dataclasses.replace(state, values=state.values.copy())
        wrong.values[:, INDEX[name]] = -1.0
        with pytest.raises(InvalidInputError, match=name):
            backend.step(self.alpha(0.5), wrong)

    def test_it_must_be_reset_before_it_is_stepped(self, backend, path):
        with pytest.raises(InvalidInputError, match="reset"):
            backend.step(self.alpha(0.5), path.at(0))
