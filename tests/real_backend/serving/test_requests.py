"""What comes over HTTP: whatever it is, it is a request or a sentence."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from real_backend.serving import requests
from real_backend.serving.open_inference import InferRequest
from real_backend.serving.requests import BadRequestError, RankRequest, Rate, failure_of
from real_backend.serving.service import OverloadedError, Ranked

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
SOUND = {
    "inputs": [
        {"name": "user", "shape": [1], "datatype": "BYTES", "data": ["ann"]},
        {"name": "events", "shape": [2], "datatype": "INT64", "data": [1, 2]},
        {"name": "candidates", "shape": [2], "datatype": "INT64", "data": [3, 4]},
    ]
}


def told(body: bytes, header: str | None = None) -> None:
    for read in (requests.parse, lambda content: InferRequest(content, header)):
        try:
            read(body)
        except BadRequestError as error:
            status, content, _ = failure_of(error)
            assert status in (400, 422) and 5 < len(content["sentence"]) <= 500


@given(st.binary(max_size=64), st.none() | st.text(max_size=4))
def test_bytes_of_any_kind(body: bytes, header: str | None) -> None:
    told(body, header)


@given(st.sampled_from(["user", "events", "candidates", "start", "more"]), JSON)
def test_a_field_of_any_kind(field: str, value: object) -> None:
    body = {"user": 1, "events": [1], "candidates": [2]} | {field: value}
    told(json.dumps(body).encode())


@given(
    st.integers(0, 2), st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), JSON, st.binary(max_size=9)
)
def test_a_tensor_of_any_kind(place: int, field: str, value: object, binary: bytes) -> None:
    asked = json.loads(json.dumps(SOUND))
    asked["inputs"][place][field] = value
    head = json.dumps(asked).encode()
    told(head + binary, str(len(head)))


@given(st.binary(max_size=24), st.integers(0, 4), st.sampled_from(["BYTES", "INT64", "UINT32"]))
def test_binary_data_of_any_kind(binary: bytes, count: int, datatype: str) -> None:
    tensor = {"name": "candidates", "shape": [count], "datatype": datatype}
    tensor["parameters"] = {"binary_data_size": len(binary)}
    head = json.dumps({"inputs": [SOUND["inputs"][0], tensor]}).encode()
    told(head + binary, str(len(head)))


def test_the_best_candidate_is_first_and_equals_keep_their_order() -> None:
    asked = RankRequest(user="a", events=[1], candidates=["x", 2, 3, "y"])
    scores = np.array([0.5, 2.0, 0.5, -1.0], np.float32)
    answer = json.loads(requests.answer_to(asked, Ranked(scores, 9, 5, 4, 1, 0.01)))
    assert answer["items"] == [2, "x", 3, "y"] and answer["scores"] == [2.0, 0.5, 0.5, -1.0]
    assert answer["history"] == {"events": 9, "seen": 5, "cached": 4}


def test_a_client_has_its_rate_and_no_other_client_s(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rate = Rate(5.0)
    for _ in range(5):
        rate.check("a")
    with pytest.raises(OverloadedError) as raised:
        rate.check("a")
    assert 0 < raised.value.retry_after_s <= 0.2
    rate.check("b")
    now += 0.4
    rate.check("a")
    rate.check("a")
    with pytest.raises(OverloadedError):
        rate.check("a")
    now -= 50.0  # a clock that jumps back costs nobody more than his share
    rate.check("b")
