"""The fidelity report: a perfect twin scores at its floor, a wrong one fails, and it says what a log lacks."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helm_gym import profile as profiles
from helm_gym.backend import Backend
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.telemetry import WIDTH, Telemetry
from real_backend.modelled import ModelledBackend
from surrogate_backend.data import log
from surrogate_backend.data.collect import Plan, run_episode
from surrogate_backend.fidelity import Judgement, judge, write_page
from surrogate_backend.fidelity import statistics as st
from surrogate_backend.fidelity.cases import SERIES, TIMES, gather
from surrogate_backend.fidelity.measures import KEYS, MEASURES, PATH_KEYS
from surrogate_backend.fidelity.rollout import Twin, Work

INTERVALS, LANES, SEED = 60, 16, 3
BLOCK, RETAKE, SWEEP, POLICY = 76, 16, 17, 44  # places in one setting of the test design
NOWHERE = pathlib.Path("no-checkpoint")


def small_profile() -> Profile:
    """cpu-small with an eighth of the pool, the items and the history, and slower: controllers lie well apart."""
    base = profiles.load("cpu-small")
    return dataclasses.replace(
        base,
        name="small",
        model=dataclasses.replace(base.model, max_history=160, max_candidates=16),
        pool=dataclasses.replace(base.pool, pages=256, page_moves_per_interval=8, shadow_pages=8),
        population=dataclasses.replace(
            base.population, users=500, items=12_500, hot_users=14, mean_history=100.0, candidates=12
        ),
        link=dataclasses.replace(base.link, bandwidth_gb_per_s=0.0245, latency_ms=0.03),
        cost=dataclasses.replace(
            base.cost, base_ms=0.6732, per_token_ms=0.002427, per_pair_ms=3.757e-6, per_context_ms=0.0007362
        ),
        slo_ms=15.0,
    )


PROFILE = small_profile()


class SlowLink(ModelledBackend):
    """A twin that is wrong about what a missed row costs, and so about where the optimum lies."""

    name = "slow-link"

    def __init__(self, profile: Profile, lanes: int = 1):
        super().__init__(profile, lanes)
        self._set_rules(self.rules._replace(row_ms=3 * self.rules.row_ms))


class Doubtful(ModelledBackend):
    """A twin that says of every other lane that it does not know."""

    name = "doubtful"

    def step(self, allocation: Any, state: Any) -> Telemetry:
        telemetry = super().step(allocation, state)
        lanes = np.arange(self.spec.lanes) % 2 == 0
        return dataclasses.replace(telemetry, extrapolating=lanes[:, None])


def collected(folder: pathlib.Path, numbers: list[int]) -> pathlib.Path:
    plan = Plan(PROFILE, "modelled", "test", INTERVALS, SEED)
    log.write_manifest(folder, plan.manifest())
    for number in numbers:
        run_episode(plan, folder, number)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two settings: six seeds and one retake, five splits, six controllers, one seed each."""
    places = [*range(6), RETAKE, *range(SWEEP, SWEEP + 9, 2), *(POLICY + k for k in (0, 2, 3, 5, 6, 7))]
    return collected(tmp_path_factory.mktemp("whole"), [BLOCK * s + place for s in range(2) for place in places])


def judged(folder: pathlib.Path, twin: Callable[..., Backend], lanes: int = LANES) -> Judgement:
    return judge(NOWHERE, folder, PROFILE, open_twin=lambda count: twin(PROFILE, count), lanes=lanes)


@pytest.fixture(scope="module")
def true(whole: pathlib.Path) -> Judgement:
    return judged(whole, ModelledBackend)


@pytest.fixture(scope="module")
def wrong(whole: pathlib.Path) -> Judgement:
    return judged(whole, SlowLink)


def part(whole: pathlib.Path, folder: pathlib.Path, keep: Callable[[int], bool]) -> pathlib.Path:
    """A copy of the log that lacks episodes."""
    for path in sorted(whole.iterdir()):
        if path.suffix != ".parquet" or keep(int(path.stem.partition("-")[2])):
            shutil.copy(path, folder)
    return folder


def verdicts(judgement: Judgement) -> dict[str, bool | None]:
    return {m.key: m.passed(judgement.floor[m.key], judgement.surrogate[m.key]) for m in MEASURES}


def test_a_perfect_twin_scores_at_its_floor(true: Judgement) -> None:
    ranks = {"kendall_tau_mean", "kendall_tau_min"}  # of six controllers, each once: a pair that changes places is .13
    assert all(passed for key, passed in verdicts(true).items() if key not in ranks), true.surrogate
    for key in ranks:
        assert true.surrogate[key] > true.floor[key] - 0.15
    for key in PATH_KEYS:
        assert abs(true.excess[key]) < 0.1 * true.floor[key]
    for key in ("expected_service_mape", "expected_sojourn_mape", "emb_hit_mae", "kv_hit_mae"):
        assert 0.4 * true.floor[key] < true.surrogate[key] < 1.7 * true.floor[key]
    assert true.timing == dict.fromkeys(PATH_KEYS, 0.0)  # the modelled rung has no noise of timing


def test_a_wrong_twin_fails_where_it_is_wrong(true: Judgement, wrong: Judgement) -> None:
    failed = {key for key, passed in verdicts(wrong).items() if not passed}
    assert failed == set(KEYS) - {"emb_hit_mae", "kv_hit_mae", "alpha_star_regret"}
    for key in ("emb_hit_mae", "kv_hit_mae"):  # its caches are right
        assert wrong.surrogate[key] == pytest.approx(true.surrogate[key], rel=0.01)
    assert wrong.surrogate["alpha_star_regret"] > 5 * true.surrogate["alpha_star_regret"]
    assert wrong.floor == true.floor
    for judged in wrong.settings:
        assert judged.surrogate["stationary_bias"] > 3  # with its sign: too slow
        assert judged.stars is not None and judged.stars[1] > judged.stars[0]  # dearer rows: more of them in the pool


def test_every_figure_of_the_json_is_there(true: Judgement, whole: pathlib.Path) -> None:
    found = json.loads(json.dumps(true.to_json(), allow_nan=False))
    assert list(found["floor"]) == list(found["surrogate"]) == list(KEYS)
    assert all(math.isfinite(found[side][key]) for side in ("floor", "surrogate") for key in KEYS)
    assert found["excess"] == {k: pytest.approx(found["surrogate"][k] - found["floor"][k]) for k in PATH_KEYS}
    assert (found["rung"], found["profile"], found["checkpoint"]) == ("modelled", "small", str(NOWHERE))
    assert found["machine"] and found["date"] and found["versions"]["numpy"] and found["log"]["folder"] == str(whole)
    assert found["missing"] == {}
    assert found["stands_on"]["service_mean_mape"] == {"settings": 2, "episodes": 12}
    assert found["stands_on"]["alpha_star_mae"] == {"settings": 2, "episodes": 10}
    assert found["stands_on"]["kendall_tau_min"] == {"settings": 2, "episodes": 12}
    for setting in found["settings"]:
        assert setting["episodes"] == {"repeat": 6, "retake": 1, "sweep": 5, "policy": 6}
        assert list(setting["surrogate"]) and 1 <= setting["best"]["place"] <= 6 and setting["best"]["cost"] >= 0
        assert setting["extrapolating"] is None  # a twin that serves requests never says so
        assert setting["disturbed"] == 0  # there is no machine on the modelled rung
    intervals = np.array(found["trust"]["hot_share_by_alpha"]["intervals"])
    assert intervals.sum() == 2 * (INTERVALS + 5 * 100)
    assert {cell["high"] >= cell["low"] for cells in found["trust"]["parameters"].values() for cell in cells} == {True}


class Page(HTMLParser):
    """What a page asks for, and what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.ids: list[str] = []
        self.drawings = 0
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.drawings += tag == "svg"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value is not None and not value.startswith("#"):
                self.asked.append(value)
            if name == "id" and value is not None:
                self.ids.append(value)
        assert tag not in ("script", "link", "img", "iframe")

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(path: pathlib.Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_the_page_stands_alone_and_says_everything(wrong: Judgement, tmp_path: pathlib.Path) -> None:
    hostile = "<img src=x>"
    path = tmp_path / "new" / "fidelity.html"
    write_page(dataclasses.replace(wrong, checkpoint=hostile), path)
    assert list(path.parent.iterdir()) == [path]
    page = read_page(path)
    assert page.asked == [] and hostile in page.text
    assert page.drawings == 6 and len(set(page.ids)) == len(page.ids)
    told = " ".join(page.text.split())
    for measure in MEASURES:
        assert measure.heading in told and measure.key in told and measure.doc in told and measure.floor in told
        assert f"{wrong.surrogate[measure.key]:.{measure.digits}f}" in told
    assert "divided by the telemetry field speed" in told and "missed:" in told
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan[a-z]*", "", told.lower())
    with pytest.raises(InvalidInputError, match="cannot be written"):
        write_page(wrong, path / "under-a-file.html")


def test_a_log_that_lacks_groups_is_judged_by_what_it_has(whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    kept = {0, 1, 2, SWEEP, SWEEP + 2, POLICY, BLOCK, BLOCK + SWEEP + 4}  # no group is whole but repeats, of setting 0
    judgement = judged(part(whole, tmp_path, kept.__contains__), ModelledBackend, lanes=4)
    found = judgement.to_json()
    json.dumps(found, allow_nan=False)
    there = {key for key, value in found["surrogate"].items() if value is not None}
    assert there == {m.key for m in MEASURES if m.group == "repeat"} | {"stationary_bias"}
    assert found["floor"]["stationary_bias"] is not None
    assert set(found["missing"]) == set(KEYS) - {"stationary_bias"}, "each lacks a setting or all of them"
    assert "No setting of the log has the group 'policy'" in found["missing"]["kendall_tau_min"]
    assert "No setting" in found["missing"]["alpha_star_mae"]
    assert "Left out" in found["missing"]["kv_hit_mae"] and "1: trend" in found["missing"]["kv_hit_mae"]
    assert found["stands_on"]["expected_sojourn_mape"] == {"settings": 1, "episodes": 3}
    assert found["stands_on"]["stationary_bias"] == {"settings": 2, "episodes": 3}
    assert found["excess"]["sojourn_mean_mape"] is not None and found["timing"]["sojourn_mean_mape"] is None
    write_page(judgement, tmp_path / "page.html")
    page = read_page(tmp_path / "page.html")
    assert page.drawings == 5  # no controllers to rank
    assert "could not be judged by this log" in page.text and found["missing"]["kendall_tau_min"] in page.text


def test_a_sweep_alone_has_no_floor_of_the_bias(whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    only = part(whole, tmp_path, lambda number: number in range(SWEEP, POLICY))
    judgement = judged(only, Doubtful, lanes=10)
    found = judgement.to_json()
    assert found["surrogate"]["stationary_bias"] is not None and found["floor"]["stationary_bias"] is None
    assert found["missing"]["stationary_bias"].startswith("The floor needs at least two episodes")
    assert found["surrogate"]["alpha_star_mae"] is not None and found["floor"]["alpha_star_mae"] is not None
    assert found["settings"][0]["extrapolating"] == 0.5
    write_page(judgement, tmp_path / "page.html")
    assert "50.0% of the intervals" in read_page(tmp_path / "page.html").text


def test_logs_that_cannot_be_judged_by_are_refused(whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidInputError, match="another profile"):
        judge(NOWHERE, whole, profiles.load("cpu-small"), open_twin=lambda lanes: ModelledBackend(PROFILE, lanes))
    with pytest.raises(InvalidInputError, match="no folder"):
        judged(tmp_path / "nowhere", ModelledBackend)
    plan = Plan(PROFILE, "modelled", "train", 4, SEED)
    log.write_manifest(tmp_path / "train", plan.manifest())
    run_episode(plan, tmp_path / "train", 0)
    with pytest.raises(InvalidInputError, match="--design test"):
        judged(tmp_path / "train", ModelledBackend)


def test_progress_comes_to_its_end(whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    told: list[tuple[str, int, int]] = []
    some = part(whole, tmp_path, {0, 1, SWEEP, POLICY}.__contains__)
    judge(NOWHERE, some, PROFILE, lambda *now: told.append(now), lambda lanes: ModelledBackend(PROFILE, lanes), 2)
    total = INTERVALS + 100 + INTERVALS
    assert [done for _, done, _ in told] == [*range(1, total + 1)] and {all_ for _, _, all_ in told} == {total}
    assert [*dict.fromkeys(what for what, _, _ in told)] == ["schedules", "held splits", "controllers"]


def test_the_twin_is_driven_as_the_log_was(whole: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logged backend under the logged seed repeats the log bit for bit, schedules and controllers alike."""
    (setting, _), _ = gather(whole, PROFILE)
    twin = Twin(ModelledBackend(PROFILE, 3))
    for cases, controlled in (([setting.repeats[0]], False), (list(setting.sweep), False), (setting.policies, True)):
        monkeypatch.setattr("surrogate_backend.fidelity.rollout.FIRST_SEED", cases[0].request_seed)
        for case, rollout in zip(cases, twin.run(Work(cases, 1, controlled), lambda: None), strict=True):
            for name in SERIES:
                np.testing.assert_array_equal(
                    rollout.series[name][0], case.series[name], err_msg=f"{case.driver} {name}"
                )


def test_recorded_arrivals_are_given_to_the_twin(whole: pathlib.Path) -> None:
    (setting, _), _ = gather(whole, PROFILE)
    gaps = np.random.default_rng(0).exponential(0.01, (4, PROFILE.interval.requests))
    cut = {name: values[:4] for name, values in setting.repeats[0].series.items()}
    case = dataclasses.replace(
        setting.repeats[0],
        warmup=1,
        workload=setting.repeats[0].workload[:4],
        asked_alpha=setting.repeats[0].asked_alpha[:4],
        gaps_s=gaps,
        series=cut,
    )
    seen = []

    class Listening(ModelledBackend):
        def step(self, allocation: Any, state: Any) -> Telemetry:
            seen.append(state.gaps_s.copy())
            return Telemetry(np.ones((2, 1, WIDTH)))

    Twin(Listening(PROFILE, 2)).run(Work([case], 2), lambda: None)
    np.testing.assert_array_equal(np.stack(seen[-4:]), np.repeat(gaps[:, None], 2, axis=1))


def test_times_of_a_slow_machine_are_scaled_to_the_models(whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A log whose machine was 1 to 3 times slower from interval to interval holds the same cases."""
    source = log.episode_path(whole, 0)
    table = pq.read_table(source)
    speed = np.linspace(1.0, 3.0, table.num_rows)
    for name in (*TIMES, "speed"):
        column = pa.array(table[name].to_numpy() * speed)
        table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
    table = table.set_column(table.column_names.index("rung"), "rung", pa.array(["measured"] * table.num_rows))
    shutil.copy(whole / log.MANIFEST, tmp_path)
    log.episode_path(tmp_path, 0).write_bytes(log.to_parquet(table))
    ((slow,), origin), ((plain, _), _) = gather(tmp_path, PROFILE), gather(whole, PROFILE)
    assert origin.rung == "measured"
    for name in SERIES:
        np.testing.assert_allclose(slow.repeats[0].series[name], plain.repeats[0].series[name], rtol=1e-12)

    shutil.copy(log.episode_path(whole, 1), tmp_path)
    with pytest.raises(InvalidInputError, match="mixes the rungs"):
        gather(tmp_path, PROFILE)


def test_what_an_interrupted_request_disturbs_counts_for_none_that_it_is_compared_with(
    whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for number in (SWEEP, SWEEP + 2, POLICY):
        shutil.copy(log.episode_path(whole, number), tmp_path)
    table = pq.read_table(log.episode_path(whole, SWEEP))
    service = np.array(table["request_service_ms"].to_pylist(), np.float32)
    service[30, 7] = 60.0  # no request of this profile takes as long
    name = "request_service_ms"
    column = pa.FixedSizeListArray.from_arrays(pa.array(service.ravel()), service.shape[1])
    table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
    log.episode_path(tmp_path, SWEEP).write_bytes(log.to_parquet(table))
    ((setting,), _), ((plain, _), _) = gather(tmp_path, PROFILE), gather(whole, PROFILE)
    expected = np.isin(np.arange(100), np.arange(30, 40), invert=True)
    assert all(np.array_equal(case.kept, expected) for case in setting.sweep)
    assert setting.policies[0].kept.all() and all(case.kept.all() for case in (*plain.sweep, *plain.policies))
    first = setting.sweep[0].series["interval_service_ms"]
    assert setting.curve[0] == pytest.approx(first[expected].mean())


def test_floor_and_twin_have_as_many_pairs() -> None:
    """Episodes of one law score the same as each other's twins, with few lanes and with many."""
    rng = np.random.default_rng(0)
    real = rng.gamma(20.0, 1.0, (12, 400))
    for lanes in (3, 12, 200):
        floor, twin = st.path_error(rng.gamma(20.0, 1.0, (lanes, 400)), real)
        assert twin == pytest.approx(floor, rel=0.04)


@pytest.mark.parametrize("seeds", [4, 7, 16])
def test_the_floor_of_an_expectation_is_what_a_perfect_twin_scores(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    real, twin = rng.normal(100.0, 10.0, (seeds, 4000)), np.full((1, 4000), 100.0)
    floor, error = st.expected_error(twin, real, relative=True)
    assert floor.mean() == pytest.approx(error.mean(), rel=0.1)


def test_halves_of_neighbours_do_not_see_a_drift() -> None:
    one, other = st.halved_means(np.arange(100.0), 20)
    assert one.shape == other.shape == (st.SPLITS,)
    np.testing.assert_allclose(one + other, 99.0)
    assert np.abs(one - other).max() <= 5.0  # a block's length; halves of time would differ by 50


def test_the_optimum_and_what_missing_it_costs() -> None:
    alphas = np.linspace(0.1, 0.9, 9)
    curve = 2.0 + 4.0 * (alphas - 0.43) ** 2
    assert st.alpha_star(alphas, curve) == pytest.approx(0.43)
    assert st.regret(alphas, curve, 0.43) == pytest.approx(0.0, abs=0.02)
    assert st.regret(alphas, curve, 0.6) == pytest.approx(100 * 4.0 * 0.17**2 / 2.0, rel=0.05)
    assert st.alpha_star(alphas, alphas) == pytest.approx(0.1)  # no optimum within: its end
