"""What a GPU machine has to show, in one JSON file that cannot pass empty.

Correctness in float32 and bfloat16 with at least 40% hits, hit against miss, the host link, attention over its floor,
overlap, requests/s over batch sizes, calibration, latency over alpha, and a log for the surrogate, in gpu_stages.py.

The file is written after every stage: a run that is cut off keeps what it has, and says ``complete: false``. ``passed``
is true only if all stages ran and each was ok; ``passed_on`` says on what. Run it by gpu_check.sh, or on a CPU, where
it shows that the lines run and nothing of a GPU:

    python -m benchmarks.gpu_check --device cpu --profile cpu-small --quick --out runs/check.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import time
import traceback
from typing import Any

import torch

from benchmarks.gpu_setting import Check, sized, with_table
from benchmarks.gpu_stages import STAGES
from helm_gym import files
from helm_gym.profile import load
from helm_gym.provenance import describe_machine, versions
from real_backend import fbgemm
from real_backend.hstu import pages


def run(check: Check, out: pathlib.Path, stages: list[str]) -> dict[str, Any]:
    """Runs ``stages`` in order; what is returned is what was written last."""
    done: dict[str, Any] = {
        "machine": describe_machine(check.device),
        "device": check.device,
        "versions": versions() | {"cuda": torch.version.cuda, "triton": _triton()},
        "operators": fbgemm.described(),
        "profile": check.profile.name,
        "profile_fingerprint": check.profile.fingerprint,
        "profile_cost": check.profile.cost.machine,
        "items": check.profile.population.items,
        "pool_bytes": check.profile.pool.pages * check.profile.pool.page_bytes,
        "quick": check.quick,
        "date": time.strftime("%Y-%m-%d"),
        "complete": False,
        "passed": False,
        "passed_on": None,
        "stages": {},
    }
    for name in stages:
        started = time.perf_counter()
        try:
            figures = STAGES[name](check)
        except Exception as error:  # the stages after it may still work, and the file must say what did not
            traceback.print_exc()
            figures = {"ok": False, "failed": f"{type(error).__name__}: {error}"}
        done["stages"][name] = figures | {"seconds": round(time.perf_counter() - started, 1)}
        if name == stages[-1]:
            done["complete"] = list(done["stages"]) == list(STAGES)
            done["passed"] = passed(done)
            done["passed_on"] = done["machine"] if done["passed"] else None
        files.write(out, json.dumps(_strict(done), indent=2) + "\n")
        print(f"{name}: {json.dumps(_strict(done['stages'][name]))}", flush=True)
    return done


def passed(done: dict[str, Any]) -> bool:
    """Whether every stage is there and ok; a file that says less has not passed."""
    stages = done.get("stages", {})
    return bool(done.get("complete")) and all(stages.get(name, {}).get("ok") is True for name in STAGES)


def _strict(value: dict[str, Any]) -> Any:
    """As JSON has it: null where a number is none."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def _triton() -> str | None:
    if pages.kernel() is None:
        return None
    import triton

    return str(triton.__version__)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--profile", default="h200", help="a shipped profile or a YAML file")
    parser.add_argument("--table-gb", type=float, default=8.0, help="item table, at most; the pool shrinks with it")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/gpu_check.json"))
    parser.add_argument("--quick", action="store_true", help="few repetitions: shows that the lines run")
    parser.add_argument("--only", action="append", choices=list(STAGES), help="stages; the file then is not complete")
    options = parser.parse_args(arguments)
    profile = dataclasses.replace(sized(load(options.profile), options.table_gb * 1e9), device=options.device)
    check = Check(profile, options.device, options.quick, options.out.with_suffix(""))
    with_table(check)
    done = run(check, options.out, options.only or list(STAGES))
    print(f"complete: {done['complete']}, passed: {done['passed']}, on: {done['machine']}")
    return int(not done["passed"])


if __name__ == "__main__":
    raise SystemExit(main())
