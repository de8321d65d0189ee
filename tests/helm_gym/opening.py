"""Opens policies one by one, each in a process of its own with two gigabytes and twenty seconds, and says how it went.

python tests/helm_gym/opening.py FILE...
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import signal
import sys
import time
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401 - imported once, before the forks

from helm_gym import profile
from helm_gym.errors import RefusedError
from helm_gym.observation import ObservationLayout
from helm_gym.policies.onnx_policy import OnnxPolicy

LAYOUT = ObservationLayout(profile.load("cpu-small"))


def attempt(path: str) -> dict[str, Any]:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
        signal.alarm(20)
        start = time.monotonic()
        try:
            policy = OnnxPolicy(pathlib.Path(path), LAYOUT)
            policy.act(np.tile(LAYOUT.high, (1024, 1)), policy.initial_state(1024))
            said = {"rule": "", "sentence": "decided for 1024 rows"}
        except RefusedError as error:
            said = {"rule": error.rule, "sentence": str(error)}
        except BaseException as error:
            said = {"rule": type(error).__name__, "sentence": repr(error)[:1000]}
        os.write(write, json.dumps(said | {"seconds": time.monotonic() - start}).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(said) if said else {"rule": "killed", "sentence": f"status {status}", "seconds": 20.0}


if __name__ == "__main__":
    print(json.dumps({path: attempt(path) for path in sys.argv[1:]}))
