"""Descriptions of logs: synthesised ones give back what they were made with, and two real logs are read unaided."""

from __future__ import annotations

import json
import math
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from helm_gym.cli.main import app
from helm_gym.errors import InvalidInputError
from helm_gym.workload.description import Description, describe, zipf_exponent
from helm_gym.workload.logs import read_log
from helm_gym.workload.synthesis import STEP_S, WRITERS, Synthesis, synthesize, write_log
from helm_gym.workload.visits import visits_of

SESSION_S = 60.0  # hot users of a synthesised log come back within minutes
KNOWN = Synthesis(
    requests=20_000, arrival_rate_rps=0.004, hot_share=0.7, hot_users=40, turnover=0.3, new_share=0.8, item_zipf=1.1
)

# How far a description may lie from what a log was made with: twelve windows of 1,667 requests.
TOLERANCES = {
    "arrival_rate_rps": 0.02 * KNOWN.arrival_rate_rps,  # visits of one user within a minute are one
    "hot_share": 0.02,
    "new_share": 0.03,
    "delta_tokens": 0.08,
    "item_zipf": 0.05,
}


def helm(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["workload", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("synthesised")


def description_of(path: pathlib.Path, session_s: float = SESSION_S) -> Description:
    return describe(visits_of(read_log(path), session_s), KNOWN.windows)


@pytest.mark.parametrize("how", WRITERS)
def test_a_synthesised_log_gives_back_its_parameters(folder: pathlib.Path, how: str) -> None:
    log = synthesize(KNOWN, np.random.default_rng(3))
    path = folder / (how + (".gz" if how == "amazon-jsonl" else ""))
    write_log(log, path, how)
    read = read_log(path)
    assert read.format.startswith(WRITERS[how][0]) and len(read.item) == len(log.item)
    if how == "open-bandit":  # arrivals and popularity only
        found = describe(visits_of(read), KNOWN.windows)
        assert found.whole.arrival_rate_rps == pytest.approx(KNOWN.arrival_rate_rps * KNOWN.delta_tokens, rel=0.02)
        assert found.whole.item_zipf == pytest.approx(KNOWN.item_zipf, abs=TOLERANCES["item_zipf"])
        assert math.isnan(found.whole.hot_share) and math.isnan(found.whole.mean_history)
        return
    found = description_of(path)
    for name, tolerance in TOLERANCES.items():
        assert getattr(found.whole, name) == pytest.approx(getattr(KNOWN, name), abs=tolerance), name
    assert np.median([window.hot_users for window in found.windows]) == pytest.approx(KNOWN.hot_users, abs=2)
    turnover = np.mean([window.turnover for window in found.windows[1:]])
    assert turnover == pytest.approx(KNOWN.turnover, abs=0.06)
    # Histories, counted by hand: a visit of a user later than a minute after the last interaction.
    before: dict[int, int] = {}
    last: dict[int, int] = {}
    histories = []
    for user, at in zip(log.user.tolist(), log.time_s.tolist(), strict=True):
        if at - last.get(user, -(10**9)) > SESSION_S:
            histories.append(before.get(user, 0))
        before[user], last[user] = before.get(user, 0) + 1, at
    assert found.whole.requests == len(histories)
    assert found.whole.mean_history == pytest.approx(np.mean(histories))
    assert STEP_S < SESSION_S


def test_a_change_over_time_is_seen_where_it_is(folder: pathlib.Path) -> None:
    quiet = synthesize(Synthesis(requests=4000, windows=1, hot_share=0.2, new_share=1.0), np.random.default_rng(0))
    busy = synthesize(
        Synthesis(requests=8000, windows=1, hot_share=0.8, new_share=1.0, item_zipf=1.3), np.random.default_rng(1)
    )
    shift = int(quiet.time_s[-1])
    both = type(quiet)(
        np.concatenate([quiet.user, busy.user + 10**6]),
        np.concatenate([quiet.item, busy.item]),
        np.concatenate([quiet.time_s, busy.time_s // 2 + shift]),
    )
    write_log(both, folder / "change.csv", "csv")
    found = describe(visits_of(read_log(folder / "change.csv"), SESSION_S), 2)
    first, second = found.windows
    assert second.arrival_rate_rps > 1.7 * first.arrival_rate_rps
    assert second.hot_share > first.hot_share + 0.4 and second.item_zipf > first.item_zipf + 0.3
    assert second.turnover > 0.9 and second.popular_changed > 0.5 and math.isnan(first.turnover)


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0, 1.5])
def test_the_exponent_is_found_whatever_it_is(exponent: float) -> None:
    weights = np.arange(1, 2001) ** -exponent
    counts = np.random.default_rng(0).multinomial(200_000, weights / weights.sum())
    assert zipf_exponent(counts) == pytest.approx(exponent, abs=0.06)
    assert math.isnan(zipf_exponent(np.array([100, 50, 3])))


def test_what_cannot_be_described_or_made_is_refused(folder: pathlib.Path) -> None:
    path = folder / "one.csv"
    path.write_text("user_id,item_id,timestamp\n1,2,1511600000\n1,3,1511600010\n", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="has one visit"):
        describe(visits_of(read_log(path)))
    with pytest.raises(InvalidInputError, match="give 1 to"):
        describe(visits_of(read_log(path), 0.0), 0)
    for wrong in ({"hot_share": 1.5}, {"requests": 1}, {"item_zipf": -1.0}, {"arrival_rate_rps": math.nan}):
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            Synthesis(**wrong)  # type: ignore[arg-type]  # each is of its field's type
    with pytest.raises(InvalidInputError, match="give fewer requests"):
        Synthesis(requests=1_000_000, delta_tokens=1000)


def test_commands_write_a_log_and_describe_it(folder: pathlib.Path) -> None:
    path, plot = folder / "made" / "log.inter", folder / "plots" / "log.png"
    made = helm("synthesize", path, "--format", "recbole", "--requests", 3000, "--seed", 4, "--json")
    assert made.exit_code == 0 and json.loads(made.stdout)["interactions"] > 3000
    told = helm("describe", path, "--session", 60, "--windows", 3, "--plot", plot)
    assert told.exit_code == 0 and "RecBole atomic file" in told.stdout and "hot share" in told.stdout
    assert plot.stat().st_size > 10_000
    figures = json.loads(helm("describe", path, "--session", 60, "--windows", 3, "--json").stdout)
    assert figures["format"] == "RecBole atomic file" and len(figures["windows"]) == 3
    assert figures["windows"][0]["turnover"] is None and figures["findings"]["bad"] == 0
    again = folder / "again.inter"
    helm("synthesize", again, "--format", "recbole", "--requests", 3000, "--seed", 4)
    assert again.read_bytes() == path.read_bytes()
    assert "did you mean 'recbole'" in helm("synthesize", again, "--format", "recbol").stderr


def test_describe_names_a_bad_row_or_lists_it(folder: pathlib.Path) -> None:
    path = folder / "bad.csv"
    rows = [f"{k % 9},{k},1,pv,{1_511_600_000 + 4000 * k}" for k in range(60)]
    path.write_text("\n".join([*rows, "1,2,1,pv,0"]), encoding="utf-8")
    refused = helm("describe", path)
    assert refused.exit_code == 2 and f"Error: {path}, line 61: time is '0': zero" in refused.stderr
    told = helm("describe", path, "--skip-bad")
    assert told.exit_code == 0 and "1 rows cannot be read: left out" in told.stdout
    assert "line 61: time is '0': zero" in told.stdout
    assert helm("describe", path, "--skip-bad", "--plot", folder / "x.txt").exit_code == 2


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The packages recbole and obp, in which two real logs are."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
    try:
        done = subprocess.run([*command, "recbole==1.2.1", "obp==0.4.1"], capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired:
        pytest.skip("the package registry does not answer")
    if done.returncode != 0:
        pytest.skip(f"the package registry cannot be reached: {done.stderr[-200:]}")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            for name in packed.namelist():
                if name.endswith(("ml-100k.inter", "bts/all/all.csv")):
                    (folder / pathlib.PurePosixPath(name).name).write_bytes(packed.read(name))
    return folder


@pytest.mark.long  # the registry may take a minute
def test_movielens_is_read_unaided(wheels: pathlib.Path) -> None:
    log = read_log(wheels / "ml-100k.inter")
    assert (log.format, len(log.item), log.users, log.items) == ("RecBole atomic file", 100_000, 943, 1682)
    assert log.findings.out_of_order > 10_000 and log.findings.bad == 0
    whole = describe(visits_of(log)).whole
    assert whole.requests < 10_000 and 0 < whole.hot_share < 1 and whole.mean_history > 50
    assert 0.3 < whole.item_zipf < 1.2


@pytest.mark.long
def test_open_bandit_is_read_unaided(wheels: pathlib.Path) -> None:
    log = read_log(wheels / "all.csv")
    assert (log.format, len(log.item), log.user, log.items) == ("Open Bandit CSV", 10_000, None, 80)
    whole = describe(visits_of(log)).whole
    assert whole.requests == 10_000 and math.isnan(whole.hot_share)
