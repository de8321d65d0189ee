"""A foreign engine: its counters make the telemetry that the project's own node reports, and the example runs."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

from helm_gym.backend import open_backend
from helm_gym.cli.main import app
from helm_gym.deploy import Controller, Counters
from helm_gym.deploy.counters import filled
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.telemetry import AT, FIELDS, WIDTH
from helm_gym.workload.regimes import make_path
from tests.helm_gym.deploy.driving import PATIENT, PROFILE, ROOT

COUNTED = [  # the last three are given
    *("unique_users", "returning_share", "mean_history", "arrival_rate_rps", "service_mean_ms", "service_p99_ms"),
    *("sojourn_mean_ms", "sojourn_p50_ms", "sojourn_p99_ms", "slo_violations", "queue_depth", "interval_service_ms"),
    *("interval_sojourn_ms", "interval_p99_ms", "interval_violations", "interval_arrival_s"),
    *("kv_hit_rate", "emb_hit_rate", "emb_miss_bytes"),
]


def test_the_same_requests_make_the_same_telemetry() -> None:
    path = make_path("burst", PROFILE, [5], 12)
    counters, clock = Counters(PROFILE), 0.0
    with contextlib.closing(open_backend("modelled", PROFILE)) as backend:
        backend.reset(path.at(0), np.array([5]), np.full((1, 1), 0.5))
        for t in range(12):
            telemetry = backend.step(np.full((1, 1), 0.5), path.at(t))
            theirs, requests = telemetry.values[0, 0], backend._requests  # type: ignore[attr-defined]  # the modelled
            assert telemetry.sojourn_ms is not None and telemetry.service_ms is not None
            for k in range(int(requests.number[0, 0])):
                clock += float(requests.gap_s[0, k])
                counters.add(
                    arrival_s=clock,
                    sojourn_ms=float(telemetry.sojourn_ms[0, 0, k]),
                    service_ms=float(telemetry.service_ms[0, 0, k]),
                    user=(int(requests.user[0, k]), int(requests.version[0, k])),
                    history=float(requests.length[0, k]),
                    # Which request hit is not reported; shares over the window are all that a node says of it.
                    kv_hit=False,
                    lookups=1,
                    misses=1,
                )
            assert counters.due
            shares = {name: float(theirs[getattr(AT, name)]) for name in COUNTED[-3:]}
            ours = counters.close(alpha=0.5, target_alpha=0.5, **shares)
            for name in COUNTED:
                if t == 0 and name in ("arrival_rate_rps", "interval_arrival_s", "queue_depth"):
                    continue  # nobody told it when the interval before began
                if name in ("unique_users", "returning_share"):
                    assert ours[getattr(AT, name)] == pytest.approx(theirs[getattr(AT, name)], abs=0.02)
                elif t > 3 or name.startswith("interval"):
                    assert ours[getattr(AT, name)] == pytest.approx(theirs[getattr(AT, name)], rel=1e-6), name


def test_an_interval_without_a_request_is_idle_and_a_new_engine_is_too() -> None:
    counters = Counters(PROFILE)
    with Controller(PROFILE, "pid", mode="active", settings=PATIENT) as controller:
        for _ in range(3):
            row = counters.close(alpha=0.4, target_alpha=0.4)
            assert np.isfinite(row).all()
            assert controller.decide(0, row)[:2] == (0.4, "idle")
        counters.add(arrival_s=1.0, sojourn_ms=2, service_ms=1, user="a", kv_hit=True, lookups=5, misses=1)
        assert not counters.due
        row = counters.close(alpha=0.4, target_alpha=0.4)
        assert controller.decide(0, row).reason is None
        assert controller.decide(0, counters.close(alpha=0.4, target_alpha=0.4)).reason == "idle"


def test_nothing_known_of_other_splits_moves_nobody() -> None:
    """A policy that follows curves or marginals holds where an engine has none, and does not guess."""
    for policy in ("miss-ratio-curve", "pid"):
        counters = Counters(PROFILE)
        with Controller(PROFILE, policy, mode="active", settings=PATIENT) as controller:
            for k in range(300):
                counters.add(
                    arrival_s=k * 0.01,
                    sojourn_ms=5.0 + k % 7,
                    service_ms=2.0 + k % 3,
                    user=k % 9,
                    kv_hit=k % 2 == 0,
                    lookups=256,
                    misses=40,
                )
                if counters.due:
                    row = counters.close(alpha=0.4, target_alpha=0.4)
                    assert controller.decide(0, row).target_alpha == pytest.approx(0.4, abs=1e-6)


def test_columns_are_taken_by_name() -> None:
    counters = Counters(PROFILE)
    row = counters.close(alpha=0.5, target_alpha=0.6, emb_gain_ms=0.2, predicted_ms=np.arange(9.0))
    assert row.shape == (WIDTH,)
    assert row[AT.emb_gain_ms] == 0.2
    assert row[AT.predicted_ms + 8] == 8.0
    assert row[AT.pending_pages] == round(0.1 * PROFILE.pool.pages)
    with pytest.raises(UnknownNameError, match="did you mean 'emb_gain_ms'"):
        counters.close(alpha=0.5, target_alpha=0.5, emb_gain=0.2)
    with pytest.raises(InvalidInputError, match="9 are needed"):
        counters.close(alpha=0.5, target_alpha=0.5, predicted_ms=np.zeros(3))


def test_the_docs_say_what_each_column_needs() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for field in FIELDS:
        assert f"`{field.name}`" in page, field.name


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("foreign_pool", ROOT / "examples" / "foreign_pool.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def test_a_foreign_engine_is_driven_in_shadow_first_and_then_active(example: ModuleType) -> None:
    ends = {}
    for mode in ("off", "shadow", "active"):
        engine, controller, times = example.episode("pid", mode, (5, 15, 45))
        with controller:
            ends[mode] = engine, times, controller.history(0)
            assert not controller.status()["interventions"]
    for phase in ("quiet", "crowd"):
        np.testing.assert_array_equal(ends["off"][1][phase], ends["shadow"][1][phase])
    assert ends["shadow"][0].alpha == 0.7
    wished = [record.decision.shadow_alpha for record in ends["shadow"][2]]
    assert min(wished[-20:]) < 0.7, "in shadow it says that the crowd needs the KV cache"
    assert ends["active"][0].alpha < 0.6
    late = slice(-1000, None)
    assert ends["active"][1]["crowd"][late].mean() < ends["off"][1]["crowd"][late].mean()


def decided(*lines: str, options: tuple[str, ...] = ("pid",)) -> list[dict[str, object]]:
    outcome = CliRunner().invoke(app, ["decide", *options], input="".join(f"{line}\n" for line in lines))
    assert outcome.exit_code == 0, outcome.stderr
    return [json.loads(line) for line in outcome.stdout.splitlines()]


def test_an_engine_in_any_language_is_advised_over_lines() -> None:
    """The same decisions as in Python, and a line that cannot be read changes nothing."""
    rng, alpha, good, expected = np.random.default_rng(0), 0.5, [], []
    with Controller("cpu-small", "pid", mode="active", settings=PATIENT) as controller:
        for _ in range(20):
            columns = {"alpha": alpha, "target_alpha": alpha, "service_mean_ms": 2.0, "interval_service_ms": 2.0}
            columns |= {"emb_gain_ms": float(rng.random()), "kv_loss_ms": float(rng.random())}
            good.append(json.dumps({"requests": 50, "telemetry": columns}))
            alpha = controller.decide(0, filled(PROFILE, np.zeros(WIDTH), columns)).target_alpha
            expected.append(alpha)
    bad = [
        *(
            "nonsense",
            "[]",
            "{",
            '{"telemetry": {}}',
            '{"telemetry": {"alpha": "x"}}',
            '{"telemetry": {"alpha": [1, 2]}}',
        ),
        *(
            '{"node": 7, "telemetry": {"alpha": 0.5}}',
            '{"telemetry": {"alpha": 0.5, "nope": 1}}',
            "[" * 5000,
            "9" * 70_000,
        ),
    ]
    answers = decided(*good[:10], *bad, *good[10:])
    errors = [answer for answer in answers if "error" in answer]
    assert len(errors) >= len(bad)
    assert all(isinstance(answer["error"], str) and len(answer["error"]) <= 500 for answer in errors)
    assert [answer["target_alpha"] for answer in answers if "error" not in answer] == expected


def test_lines_without_telemetry_and_old_ones_hold() -> None:
    told = '"telemetry": {"alpha": 0.4, "service_mean_ms": 2, "interval_service_ms": 2}'
    answers = decided(f"{{{told}}}", '{"telemetry": null}', f'{{"age_s": 60, {told}}}', f'{{"requests": 0, {told}}}')
    assert [answer["reason"] for answer in answers] == [None, "absent", "stale", "idle"]
    assert {answer["target_alpha"] for answer in answers} == {0.4}
    (shadow,) = decided(f"{{{told}}}", options=("pid", "--mode", "shadow"))
    assert shadow["shadow_alpha"] is not None
