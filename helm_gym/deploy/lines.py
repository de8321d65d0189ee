"""A controller over lines of JSON, for engines that are not written in Python: telemetry in, targets out.

    {"node": 0, "requests": 50, "telemetry": {"alpha": 0.5, "target_alpha": 0.5, "service_mean_ms": 2.1, ...}}
    {"node": 0, "target_alpha": 0.51, "reason": null, "shadow_alpha": null}

What cannot be read is answered with an ``error`` and changes nothing: the next line is decided on as if it had not
been.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import numpy as np
import pydantic

from helm_gym import files
from helm_gym.deploy.controller import Controller
from helm_gym.deploy.counters import filled
from helm_gym.errors import HelmError
from helm_gym.telemetry import WIDTH
from helm_gym.text import sentence

MAX_LINE = 64 * 1024
_Count = Annotated[int, pydantic.Field(strict=True, ge=0, le=2**40)]


class Line(pydantic.BaseModel):
    """An interval of a node.

    ``telemetry``: columns by name, of which ``alpha`` is required; null: the engine has none. ``age_s``: since the
    interval's end. The rest is as ``Controller.decide`` takes it.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    node: _Count = 0
    telemetry: dict[str, float | list[float]] | None
    age_s: Annotated[float, pydantic.Field(ge=0)] = 0.0
    requests: _Count | None = None
    errors: _Count = 0
    memory_bytes: Annotated[float, pydantic.Field(ge=0)] | None = None


def answer(controller: Controller, line: str, now_s: float) -> dict[str, Any]:
    """The decision on a line, or ``error``."""
    try:
        if len(line) > MAX_LINE:
            return {"error": f"The line has more than {MAX_LINE:,} characters."}
        told = Line.model_validate(files.parse_json(line, "The line", "write it anew"))
        row = None
        if told.telemetry is not None:
            if "alpha" not in told.telemetry:
                return {"node": told.node, "error": "telemetry has no alpha, EMB's share of the pool."}
            columns = {"target_alpha": told.telemetry["alpha"]} | told.telemetry
            row = filled(controller.profile, np.zeros(WIDTH), columns)
        decision = controller.decide(
            told.node,
            row,
            now_s,
            measured_s=now_s - told.age_s,
            requests=told.requests,
            errors=told.errors,
            memory_bytes=told.memory_bytes,
        )
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return {"error": sentence(f"{'.'.join(map(str, first['loc'])) or 'The line'}: {first['msg']}.")}
    except HelmError as error:
        return {"error": sentence(str(error))}
    found = {"node": told.node, "target_alpha": decision.target_alpha, "reason": decision.reason}
    return found | {"shadow_alpha": decision.shadow_alpha}


def written(told: dict[str, Any]) -> str:
    """The line of an answer."""
    return json.dumps(told, allow_nan=False)
