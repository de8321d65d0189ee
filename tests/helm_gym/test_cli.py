"""The command line as a user meets it: mistakes end with one sentence and exit code 2, JSON is strict, help helps."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import agents
from helm_gym import profile as profiles
from helm_gym.cli import common
from helm_gym.cli.common import Progress, parse_seeds, to_json
from helm_gym.cli.main import COMMANDS, app
from helm_gym.errors import InvalidInputError
from helm_gym.paper import FIGURES
from helm_gym.profile import Interval
from helm_gym.text import plain

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.99,{},109\n"


def helm(*arguments: str | pathlib.Path) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def strict_json(text: str) -> Any:
    """Parses what a strict reader would: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def evaluate(*policies: str, **options: str | pathlib.Path) -> tuple[str | pathlib.Path, ...]:
    options = {"task": "burst-v0", **options}
    return ("evaluate", *policies, *(x for name, value in options.items() for x in (f"--{name}", value)))


def collect(**options: str | pathlib.Path) -> tuple[str | pathlib.Path, ...]:
    options = {"out": "/dev/null/log", **options}
    return ("collect", *(x for name, value in options.items() for x in (f"--{name}", value)))


@pytest.fixture
def small(tmp_path: pathlib.Path) -> pathlib.Path:
    """A profile that is quick to serve, as a file."""
    profile = profiles.load("cpu-small")
    population = dataclasses.replace(profile.population, users=1000, items=20_000)
    quick = dataclasses.replace(profile, name="small", interval=Interval(10, 20), population=population)
    profiles.save(quick, tmp_path / "small.yaml")
    return tmp_path / "small.yaml"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (evaluate("pid", task="brust-v0"), "Unknown task 'brust-v0'; did you mean 'burst-v0'?"),
        (evaluate("pid", profile="cpu-smal"), "Unknown profile 'cpu-smal'; did you mean 'cpu-small'?"),
        (evaluate("pid", backend="modeled"), "Unknown backend 'modeled'; did you mean 'modelled'?"),
        (evaluate("shadow-grad"), "Unknown policy 'shadow-grad'; did you mean 'shadow-gradient'?"),
        (evaluate("static:nan"), "finite number"),
        (evaluate("static:2"), "out of bounds"),
        (evaluate("static"), "static:ALPHA"),
        (evaluate("pid", seeds="0..9"), "--seeds '0..9'"),
        (evaluate("pid", seeds="0"), "names no seed"),
        (evaluate("pid", seeds="3,3"), "twice"),
        (evaluate("pid", "pid"), "given twice"),
        (evaluate("pid", task="trace-v0"), "--trace PATH"),
        (evaluate("pid", trace="x.csv"), "leave --trace out"),
        (evaluate("pid", task="trace-v0", trace="no/such.csv"), "no/such.csv"),
        (evaluate("pid", profile="no/such.yaml"), "no/such.yaml"),
        (evaluate("pid", html="/dev/null/report.html"), "--html /dev/null/report.html"),
        (("reproduce", "fig44"), "did you mean 'fig4'?"),
        (("bench", "--only", "env_step_per_s"), "did you mean 'env_steps_per_s'?"),
        (("calibrate", "--out", "profile.json"), ".yaml"),
        (("collect",), "--out"),
        (collect(backend="modeled"), "Unknown backend 'modeled'; did you mean 'modelled'?"),
        (collect(backend="surrogate"), "Unknown backend 'surrogate'; known: modelled, real."),
        (collect(design="tset"), "Unknown design 'tset'; did you mean 'test'?"),
        (collect(profile="cpu-smal"), "did you mean 'cpu-small'?"),
        (collect(episodes="3", settings="1", design="test"), "--episodes and --settings both say how much"),
        (collect(settings="1"), "--settings is for --design test"),
        (collect(episodes="0"), "--episodes"),
        (collect(intervals="many"), "--intervals"),
        (collect(workers="0"), "--workers"),
        (collect(trace="no/such.csv"), "no/such.csv"),
        (collect(out="/dev/null/log"), "/dev/null/log cannot be written"),
        (("fit",), "LOG"),
        (("fit", "no/such/log", "--out", "/dev/null/x"), "--out /dev/null/x"),
        (("fit", "no/such/log", "--out", "runs/x", "--profile", "cpu-smal"), "did you mean 'cpu-small'?"),
        (("fidelity", "no-such-v1"), "LOG"),
        (("fidelity", "no-such-v1", "no/such/log"), "Unknown checkpoint 'no-such-v1'"),
        (("fidelity", "no-such-v1", "no/such/log", "--html", "/dev/null/x.html"), "--html /dev/null/x.html"),
        (("evalute",), "Did you mean 'evaluate'?"),
        (("evaluate", "pid"), "--task"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_mistake_ends_with_one_sentence_and_exit_code_2(arguments: tuple[str, ...], sentence: str) -> None:
    result = helm(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith("Error: ") and sentence in result.stderr
    assert "Traceback" not in result.stderr


GIVEN_TEXT = [
    (name, param)
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]  # it is a group
    for param in command.params
    if not getattr(param, "is_flag", False)
]
# Arguments that come before an argument.
BEFORE = {("fidelity", "log"): ("checkpoint",), ("model", "file"): ("show",)}


@pytest.mark.parametrize(("name", "param"), GIVEN_TEXT, ids=lambda value: getattr(value, "name", value))
def test_an_empty_value_is_an_error_of_every_option_and_argument(name: str, param: Any) -> None:
    for empty in ("", "  "):
        option = param.opts[:1] if param.param_type_name == "option" else BEFORE.get((name, param.name), ())
        result = helm(name, *option, empty)
        assert result.exit_code == 2 and result.stdout == ""
        assert f"Error: Invalid value for {param.get_error_hint()}: it is empty" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (evaluate("pid", horizon="9" * 20), "horizon must be 1 to 100,000, not 99999999999999999999."),
        (evaluate("oracle-late:1e300"), "oracle-late:1e+300 never learns of a regime; give at most 100,000."),
        (evaluate("x" * 10_000), "xxx"),
        (evaluate("x" * 10_000 + ".onnx"), "File name too long"),
        (evaluate("runs/" + "x" * 10_000), "is no folder or file"),
        (evaluate("pid", profile="x" * 10_000 + ".yaml"), "File name too long"),
        (evaluate("pid", task="x" * 10_000), "known: burst-v0"),
        (evaluate("pid", html="x" * 10_000), "File name too long"),
        (evaluate("pid", html="/dev/full"), "--html /dev/full is there and is no file"),
        (evaluate("pid+joint", cluster="²"), "'²' is neither a number of nodes nor a YAML file"),
        (evaluate("pid+joint", cluster="9" * 5000), "is neither a number of nodes"),
        (evaluate("pid+joint", cluster="0"), "count must be 1 to 1,024, not 0"),
        (evaluate("pid", seeds="٣"), "--seeds '٣' cannot be read"),
        (evaluate("pid", seeds="9" * 5000), "cannot be read"),
        (evaluate("pid", task="trace-v0", trace="."), "."),
        (("train", "pid", "--out", "x", "--steps", "9" * 30), "A training takes 1 to 1,000,000,000,000 steps"),
        (("train", "ppo", "--out", "x", "--set", "hidden=1e9"), "hidden must be 1 to 4,096, not 1000000000"),
        (("train", "pid", "--out", "x", "--set", "kp=1e308"), "kp must be -1,000,000,000 to 1,000,000,000"),
        (("fidelity", "x" * 10_000, "log"), "Unknown checkpoint 'xxx"),
        (("calibrate", "--out", "\x1b[31m.yaml"), "must be a name"),
        (("tune", "pid", "--out", "x", "--study", "../x"), "--study must be a name"),
        (("x" * 10_000,), "No such command"),
        (("--" + "x" * 10_000,), "No such option"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else value[0][:9],
)
def test_values_beyond_what_can_be_end_with_one_short_sentence(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = helm(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith("Error: ") and sentence in last
    assert len(last) <= len("Error: ") + 500 and "Traceback" not in result.stderr


ODD = ("\x1b[31mred", "\u202etxt", "two\nlines", "[/red]", "$\\frac{$", os.fsdecode(b"\xff"))


def test_names_from_outside_reach_no_terminal_as_they_are(tmp_path: pathlib.Path) -> None:
    shipped, page = pathlib.Path(agents.__file__).parent / "shipped" / "pid" / "cpu-small", tmp_path / f"{ODD[0]}.html"
    runs = [shutil.copytree(shipped, tmp_path / name) for name in ODD]
    small = evaluate(*map(str, runs), seeds="1", horizon="1", html=page)
    table, figures = helm(*small), helm(*small, "--json")
    assert (table.exit_code, figures.exit_code) == (0, 0)
    for text in (table.stdout, table.stderr, figures.stdout, page.read_text(encoding="utf-8")):
        assert text.replace("\n", "").isprintable()
    assert all(plain(name) in table.stdout for name in ODD)
    assert [row["name"] for row in strict_json(figures.stdout)["policies"]] == list(map(str, runs))
    for name in ODD:
        refused = helm(*evaluate(str(tmp_path / f"{name}.onnx")))
        assert refused.exit_code == 2 and refused.stderr.replace("\n", "").isprintable()
        assert plain(" ".join(name.split())) in refused.stderr


def test_a_profiles_texts_reach_no_terminal_as_they_are(tmp_path: pathlib.Path) -> None:
    text = (profiles.PROFILES / "cpu-small.yaml").read_text().replace("cpu-small", '"\\e[31m"')
    (tmp_path / "x.yaml").write_text(text)
    result = helm(*evaluate("pid", profile=tmp_path / "x.yaml"))
    assert result.exit_code == 2 and r"\x1b[31m" in result.stderr and "\x1b" not in result.stderr


def test_progress_is_plain_and_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with Progress().stage("a \x1b[31m[/red]") as tick:
        tick("\u202e", 1, 2)
    Progress().say("b \x1b[0m")
    assert capsys.readouterr().err == "a \\x1b[31m[/red] ...\nb \\x1b[0m\n"
    terminal = Progress()
    terminal._console = Console(file=io.StringIO(), force_terminal=True, no_color=True)
    with terminal.stage("a \x1b]0;[/red]") as tick:
        tick("[/bold]\u202e", 1, 2)
    assert "\x1b]0;" not in terminal._console.file.getvalue() and "\u202e" not in terminal._console.file.getvalue()


def test_commands_print_through_the_one_border() -> None:
    for path in pathlib.Path(common.__file__).parent.glob("*.py"):
        if path.name not in ("common.py", "main.py"):
            assert not re.search(r"(typer\.echo|(?<!\.)\bprint|sys\.std\w+\.write)\(", path.read_text()), path


def test_what_the_machine_cannot_do_ends_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, sentence in (
        (MemoryError("Unable to allocate 9 TiB"), "too little memory (Unable to allocate 9 TiB); ask for less"),
        (OSError(28, "No space left on device", "/x\x1b"), r"/x\x1b cannot be used: No space left on device"),
    ):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(profiles, "load", fail)
        result = helm("evaluate", "pid", "--task", "burst-v0")
        assert result.exit_code == 2 and sentence in result.stderr and "Traceback" not in result.stderr


def test_malformed_trace_is_named_by_file_and_line(tmp_path: pathlib.Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(AZURE.format("many"), encoding="utf-8")
    result = helm(*evaluate("pid", task="trace-v0", trace=trace))
    assert result.exit_code == 2
    assert f"Error: {trace}, line 3: " in result.stderr


@pytest.mark.parametrize(("command", "key"), [("tasks", "tasks"), ("profiles", "profiles"), ("agents", "agents")])
def test_lists_as_table_and_strict_json(command: str, key: str) -> None:
    listed = strict_json(helm(command, "--json").stdout)[key]
    table = helm(command)
    assert table.exit_code == 0 and listed
    for entry in listed:
        assert entry["name"] in table.stdout


@pytest.mark.parametrize("command", [c.__name__ for c in COMMANDS])
def test_help_has_an_example(command: str) -> None:
    result = helm(command, "--help")
    assert result.exit_code == 0
    assert f"  helm-gym {command}" in result.stdout


def test_help_of_reproduce_names_every_figure_and_bench_lists_its_own() -> None:
    told = helm("reproduce", "--help").stdout
    assert all(f"  {name}" in told and text in told for name, (_, text) in FIGURES.items())
    listed = strict_json(helm("bench", "--list", "--json").stdout)
    assert listed["env_steps_per_s"]["groups"] == "surrogate"
    assert "node_steps_per_s_two_cores" in helm("bench", "--list", "--only", "surrogate").stdout


def test_evaluate_prints_strict_json_and_writes_a_report(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "deep" / "report.html"
    small = evaluate("static:0.5", "miss-ratio-curve", seeds="3,", horizon="12", html=page)
    result = helm(*small, "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    figures = strict_json(result.stdout)
    assert figures["rung"] == "modelled" and figures["seeds"] == [3]
    assert [row["name"] for row in figures["policies"]] == ["static:0.5", "miss-ratio-curve"]
    assert all(set(row["p99_ms"]) == {"value", "low", "high"} for row in figures["policies"])
    assert "miss-ratio-curve" in page.read_text(encoding="utf-8")


def test_reproduce_writes_plot_text_and_strict_json(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helm_gym.paper import fig4

    monkeypatch.setattr(fig4, "HORIZON", 24)
    result = helm("reproduce", "fig4", "--seeds", "1", "--out", tmp_path, "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    figures = strict_json(result.stdout)
    assert {"steady", "trend, few return", "trend, many return"} < set(figures["alpha_star"])
    stars = figures["alpha_star"].values()
    assert figures["alpha_star_span"] == pytest.approx(max(stars) - min(stars))
    assert set(figures["burst_best_static_p99_loss"]) == {"value", "low", "high"}
    assert figures["rung"] == "modelled" and figures["machine"] and figures["date"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fig4.json", "fig4.md", "fig4.png", "fig4.svg"]


def test_collect_logs_goes_on_and_says_so(small: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "logs" / "train"
    arguments = collect(out=out, profile=small, intervals="3", seed="5")
    first = helm(*arguments, "--episodes", "2", "--quiet")
    assert (first.exit_code, first.stderr) == (0, "")
    assert re.fullmatch(
        rf"Log {re.escape(str(out))}: 0 episodes there before, 2 added: 6 intervals in \d+ s, modelled rung\.\n",
        first.stdout,
    )
    more = helm(*arguments, "--episodes", "5", "--json", "--quiet")
    assert (more.exit_code, more.stderr) == (0, "")
    figures = strict_json(more.stdout)
    assert figures.pop("seconds") > 0
    said = {"folder": str(out), "profile": "small", "rung": "modelled", "design": "train", "seed": 5}
    assert figures == said | {"there": 2, "added": 3, "intervals": 9}
    assert len(list(out.glob("episode-*.parquet"))) == 5
    other = helm(*arguments, "--design", "test")
    assert other.exit_code == 2
    assert f"Error: {out} holds a log of design 'train' and not 'test'; give another folder.\n" in other.stderr


def test_collect_takes_settings_of_the_test_design_and_traces(small: pathlib.Path, tmp_path: pathlib.Path) -> None:
    test = helm(*collect(out=tmp_path / "test", profile=small, intervals="2", design="test", settings="1"), "--json")
    # A setting: repeats and a retake, nine splits of three request seeds, eight controllers of four.
    assert strict_json(test.stdout)["added"] == 16 + 1 + 9 * 3 + 8 * 4
    trace = tmp_path / "trace.csv"
    lines = [f"2023-11-16 18:{k // 60:02d}:{k % 60:02d}.5,374,44" for k in range(60)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n", encoding="utf-8")
    traced = collect(out=tmp_path / "traced", profile=small, intervals="2", trace=trace, episodes="9")
    told = helm(*traced)
    assert told.exit_code == 0
    assert f"Trace trace.csv: Azure LLM inference CSV, {len(lines)} requests over " in told.stderr
    assert json.loads((tmp_path / "traced/log.json").read_text())["trace"].startswith("trace ")
    wrong = helm(*collect(out=tmp_path / "x", profile=small, design="test", settings="1", trace=trace))
    assert wrong.exit_code == 2 and "takes no recorded arrivals" in wrong.stderr
    assert not (tmp_path / "x").exists()


def test_fit_hands_over_what_was_asked_and_prints_where_the_checkpoint_lies(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(profile: Any, logs: Any, out: Any, settings: Any, progress: Any) -> dict[str, Any]:
        progress(0, 7, {"held_out": math.inf})
        return {"profile": profile.name, "logs": list(map(str, logs)), "held_out": {"loss": 0.25}} | settings

    fakes = {"surrogate_backend.fit:fit": fit, "surrogate_backend.fit:Settings": dict}
    fakes["surrogate_backend.data.log:is_of_clusters"] = lambda folder: False
    monkeypatch.setattr("helm_gym.cli.fit.open_by_name", fakes.__getitem__)
    out = tmp_path / "runs" / "x"
    done = helm("fit", "a", "b", "--out", out, "--steps", "7", "--seed", "0", "--json", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    said = {"profile": "cpu-small", "logs": ["a", "b"], "held_out": {"loss": 0.25}, "checkpoint": str(out)}
    assert strict_json(done.stdout) == said | {"steps": 7, "seed": 0}
    table = helm("fit", "a", "--out", out)
    assert "loss" in table.stdout and "0.25" in table.stdout and f"Checkpoint: {out}" in table.stdout


def test_fit_refuses_what_is_no_log(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "empty").mkdir()
    for folder, sentence in (("none", "is no folder"), ("empty", "holds no episodes")):
        result = helm("fit", tmp_path / folder, "--out", tmp_path / "out", "--quiet")
        assert result.exit_code == 2 and result.stdout == ""
        assert re.fullmatch(rf"Error: Log {re.escape(str(tmp_path / folder))} {sentence}.*\.\n", result.stderr)


def test_fidelity_shows_figures_beside_their_floor(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {
        "rung": "measured",
        "floor": {"service_mean_mape": 4.31, "kendall_tau_mean": None},
        "surrogate": {"service_mean_mape": 4.52, "kendall_tau_mean": None},
        "units": {"service_mean_mape": "%", "kendall_tau_mean": ""},
        "missing": {"kendall_tau_mean": "No setting of the log has controllers."},
    }
    asked = []

    def judge(checkpoint: Any, log: Any, profile: Any, progress: Any) -> Any:
        asked.append((checkpoint, log, profile.name))
        progress("repeat", 1, 2)
        return SimpleNamespace(to_json=lambda: figures)

    fakes = {
        "surrogate_backend.checkpoint:find": lambda text, profile: pathlib.Path("shipped") / text,
        "surrogate_backend.fidelity:judge": judge,
        "surrogate_backend.fidelity:write_page": lambda judgement, path: path.write_text("a page"),
    }
    monkeypatch.setattr("helm_gym.cli.fidelity.open_by_name", fakes.__getitem__)
    page = tmp_path / "deep" / "page.html"
    table = helm("fidelity", "cpu-small-v2", "logs/test", "--html", page, "--quiet")
    assert (table.exit_code, table.stderr) == (0, "")
    assert re.search(r"service_mean_mape +4\.31 +4\.52 +%", table.stdout) and "logs/test, measured rung" in table.stdout
    assert "kendall_tau_mean: No setting of the log has controllers." in table.stdout
    assert page.read_text() == "a page" and asked == [
        (pathlib.Path("shipped/cpu-small-v2"), pathlib.Path("logs/test"), "cpu-small")
    ]
    assert strict_json(helm("fidelity", "cpu-small-v2", "logs/test", "--json", "--quiet").stdout) == figures


def test_progress_says_how_fast_it_goes_and_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of work of which a part was there before: that part took no time."""
    clock = iter([100.0, 100.0, 110.0, 110.0, 110.0, 120.0, 120.0, 120.0, *([130.0] * 9)])
    monkeypatch.setattr(common, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with Progress().stage("collect", "intervals") as tick:
        tick("", 20, 40, 0)
        tick("", 22, 40, 960)
        tick("held_out 0.5", 25, 40, 2400)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "collect ..."
    assert all(re.fullmatch(r"collect: \d+/40, [\d,.]+ intervals/s, \d:\d\d:\d\d left.*", line) for line in shown[2:])
    assert shown[-1].endswith(", held_out 0.5")


@pytest.mark.long
def test_demo_compares_confirms_and_says_what_was_learned(tmp_path: pathlib.Path) -> None:
    result = helm("demo", "--out", tmp_path, "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    results = strict_json((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["modelled"]["rung"] == "modelled" and results["measured"]["rung"] == "measured"
    assert results["learned"] in result.stdout
    assert "measured rung" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_seeds() -> None:
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("0-2,7") == (0, 1, 2, 7)
    assert parse_seeds("7,") == (7,)
    for wrong in ("", "-1", "2-", "5-3", "1,,2", "1e3", "٣", "99999999"):
        with pytest.raises(InvalidInputError):
            parse_seeds(wrong)


def test_json_has_null_where_a_number_does_not_exist() -> None:
    assert strict_json(to_json({"a": float("nan"), "b": (1.0, float("inf"))})) == {"a": None, "b": [1.0, None]}


def test_console_script_starts_without_what_is_heavy() -> None:
    code = (
        "import sys, helm_gym.cli.main; print(*{'torch', 'numba', 'matplotlib', 'scipy', 'pyarrow'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
    shown = subprocess.run([sys.executable, "-m", "helm_gym.cli.main", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "evaluate" in shown.stdout
