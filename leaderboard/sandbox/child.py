"""The confined end: opens one policy from bytes and decides for whatever observations come through the pipe."""

from __future__ import annotations

import importlib
import json
import os
import sys

from helm_gym import files
from helm_gym import profile as profiles
from helm_gym.errors import HelmError, RefusedError, UnfitPolicyError
from helm_gym.observation import ObservationLayout
from helm_gym.policies import onnx_check
from helm_gym.policies.onnx_check import probing, rules
from leaderboard.sandbox import confine, wire


def main() -> None:
    """Run by ``SandboxedPolicy``: the setup in argv, the pipes as standard input and output."""
    setup = files.parse_json(sys.argv[1], "The setup")
    confine.end_with_parent(setup["parent"])
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints goes where nobody reads it
    layout = ObservationLayout(profiles.load(setup["profile"]))
    # Imported or opened now, since nothing can be later.
    import onnxruntime

    if setup["confined"]:
        importlib.import_module("pyseccomp")
    probing.resident_bytes()
    onnxruntime.set_default_logger_severity(4)
    confine.limit(setup["memory_bytes"], setup["cpu_s"])
    if setup["confined"]:
        confine.confine()

    def read(count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            part = os.read(0, count - len(content))
            if not part:
                os._exit(0)  # the parent is done
            content += part
        return bytes(content)

    def write(content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[os.write(answers, left) :]

    try:
        checked = onnx_check.check(wire.read_sized(read, rules.MAX_FILE_BYTES + 1), layout, setup["action"])
    except RefusedError as error:
        fit = "unfit" if isinstance(error, UnfitPolicyError) else "refused"
        write(wire.packed(json.dumps({"result": fit, "rule": error.rule, "sentence": str(error)})))
        return
    except (HelmError, MemoryError) as error:
        write(wire.packed(json.dumps({"result": "fault", "sentence": rules.first_line(error) or "out of memory"})))
        return
    walked, probed = checked.walked, checked.probed
    told = {"result": "opened", "facts": checked.facts, "walked": vars(walked), "probed": vars(probed)}
    write(wire.packed(json.dumps(told)))
    while True:
        (rows,) = wire.COUNT.unpack(read(wire.COUNT.size))
        observation = wire.read_floats(read, rows, walked.observation)
        state = wire.read_floats(read, rows, walked.state)
        try:
            action, following = checked.session.run(onnx_check.OUTPUTS, {"obs": observation, "state": state})
        except Exception as error:  # onnxruntime's have no base of their own
            write(wire.FAULT + wire.packed(rules.first_line(error)))
            continue
        write(wire.DONE + action.tobytes() + following.tobytes())


if __name__ == "__main__":
    main()
