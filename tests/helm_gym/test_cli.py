"""The command line as a user meets it: mistakes end with one sentence and exit code 2, JSON is strict, help helps."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from helm_gym.cli.common import parse_seeds, to_json
from helm_gym.cli.main import COMMANDS, app
from helm_gym.errors import InvalidInputError

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
    code = "import sys, helm_gym.cli.main; print(*{'torch', 'numba', 'matplotlib', 'scipy'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
    shown = subprocess.run([sys.executable, "-m", "helm_gym.cli.main", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "evaluate" in shown.stdout
