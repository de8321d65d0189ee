"""What the README and docs/cluster.md show runs: code as it stands, and the first command on the measured rung."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
from typer.testing import CliRunner

from helm_gym.cli.main import app

ROOT = pathlib.Path(__file__).parent.parent
TEXTS = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/cluster.md")]
BLOCKS = [block for text in TEXTS for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_runs_as_it_stands(number):
    code = BLOCKS[number].replace("horizon=40", "horizon=4")
    exec(compile(code, f"block {number}", "exec"), {"__name__": "readme"})


def test_there_are_blocks_for_an_environment_a_policy_and_a_backend():
    assert [word for word in ("gymnasium.make", "class Greedy", "class SlowLink") if word in "".join(BLOCKS)] == [
        "gymnasium.make",
        "class Greedy",
        "class SlowLink",
    ]


def test_evaluate_runs_on_real_inference():
    command = ["evaluate", "static:0.2", "pid", "--task", "tests.registering:BRIEF", "--backend", "real"]
    result = CliRunner().invoke(app, [*command, "--seeds", "1", "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["rung"] == "measured"
    assert [row["name"] for row in report["policies"]] == ["static:0.2", "pid"]
    assert all(row["mean_latency_ms"]["value"] > 0 for row in report["policies"])
