"""What is shipped does what it did: every policy, router and checkpoint, on all backends that are exact.

Where figures change for a good reason, a version changes with them; then `python -m tests.test_shipped` writes
shipped.json anew, and its diff says by how much.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

import helm_gym
from helm_gym import registry
from helm_gym.policies.from_run import shipped_folder
from helm_gym.training.trainable import find_trainable
from tests.conformance.policy import make_layout

FILE = pathlib.Path(__file__).with_name("shipped.json")
ROOT = FILE.parents[1]
FEW: dict[str, Any] = {"task": "burst-v0", "seeds": [7001], "horizon": 24, "references": False}


def shipped() -> list[str]:
    """Names of the policies that are shipped for the layout's profile."""
    layout, found = make_layout(), []
    for name, entry in registry.listed("policy").items():
        if (
            entry.agent
            and shipped_folder(find_trainable(entry.agent).name, entry.module.split(".")[0], layout).is_dir()
        ):
            found.append(name)
    return found


def figures() -> dict[str, dict[str, float]]:
    """Of each evaluation, each policy's cost."""
    names = shipped()
    files = sorted(str(path) for package in ("agents", "baselines") for path in (ROOT / package).rglob("policy.onnx"))
    policies = [name for name in files if "/router/" not in name]
    pairs = ["three-layer-ppo+learned", "static:0.5+joint"]
    made = {
        "modelled": helm_gym.evaluate([*names, *policies], backend="modelled", **FEW),
        "surrogate": helm_gym.evaluate(names, backend="surrogate", **FEW),
        "surrogate-measured": helm_gym.evaluate(names[:1], backend="surrogate-measured", **FEW),
        "cluster, modelled": helm_gym.evaluate(pairs, backend="modelled", cluster=2, **FEW),
        "cluster, surrogate": helm_gym.evaluate(pairs, backend="surrogate", cluster=2, **FEW),
    }
    return {
        key: {row["name"].removeprefix(f"{ROOT}/"): row["cost"]["value"] for row in scores.figures["policies"]}
        for key, scores in made.items()
    }


def test_what_is_shipped_does_what_it_did() -> None:
    kept, found = json.loads(FILE.read_text(encoding="utf-8")), figures()
    assert {key: set(rows) for key, rows in found.items()} == {key: set(rows) for key, rows in kept.items()}
    for key, rows in kept.items():  # other processors round otherwise, and a split is a whole number of pages
        assert found[key] == pytest.approx(rows, rel=1e-3), key


if __name__ == "__main__":
    FILE.write_text(json.dumps(figures(), indent=2) + "\n", encoding="utf-8")
