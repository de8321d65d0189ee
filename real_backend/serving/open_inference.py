"""The Open Inference Protocol, version 2, with its extension for binary tensors, which Triton's clients speak."""

from __future__ import annotations

import struct
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic_core import to_json

from real_backend.serving.requests import BadRequestError, RankRequest, told
from real_backend.serving.service import MAX_EVENTS, Ranked

HEADER_LENGTH = "inference-header-content-length"
EXTENSIONS = ["binary_tensor_data"]
_NUMBERS: dict[str, np.dtype[Any]] = {
    "INT64": np.dtype("<i8"),
    "UINT64": np.dtype("<u8"),
    "INT32": np.dtype("<i4"),
    "UINT32": np.dtype("<u4"),
}
_ANY_ID = "BYTES, INT64 or UINT64"
INPUTS = [
    {"name": "user", "datatype": "BYTES", "shape": [1]},
    {"name": "events", "datatype": "INT64", "shape": [-1]},
    {"name": "candidates", "datatype": "INT64", "shape": [-1]},
    {"name": "start", "datatype": "INT64", "shape": [1]},
]
OUTPUTS = [
    {"name": "scores", "datatype": "FP32", "shape": [-1]},
    {"name": "history", "datatype": "INT64", "shape": [3]},  # events, seen, cached
]
_OPTIONAL = ("events", "start")
Parameters = dict[str, pydantic.JsonValue]


class _Tensor(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=64)
    shape: list[Annotated[int, pydantic.Field(ge=0, le=MAX_EVENTS)]] = pydantic.Field(max_length=2)
    datatype: Literal["BYTES", "INT64", "UINT64", "INT32", "UINT32"]
    parameters: Parameters = pydantic.Field(default={}, max_length=16)
    data: list[pydantic.JsonValue] | None = pydantic.Field(default=None, max_length=MAX_EVENTS)


class _Output(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=64)
    parameters: Parameters = pydantic.Field(default={}, max_length=16)


class _Infer(pydantic.BaseModel):
    id: str = pydantic.Field(default="", max_length=256)
    parameters: Parameters = pydantic.Field(default={}, max_length=16)
    inputs: list[_Tensor] = pydantic.Field(min_length=1, max_length=8)
    outputs: list[_Output] = pydantic.Field(default=[], max_length=8)


class InferRequest:
    """What a client asked, and in which form it wants the answer.

    Args:
        header_length: bytes of JSON at the start of the body, where tensors in binary form follow.

    Raises:
        BadRequestError: it is no such request.
    """

    def __init__(self, body: bytes, header_length: str | None):
        length = len(body)
        if header_length is not None:
            if not (header_length.isascii() and header_length.isdecimal() and int(header_length[:10]) <= len(body)):
                raise BadRequestError(400, "Inference-Header-Content-Length is no number of bytes within the body.")
            length = int(header_length)
        try:
            asked = _Infer.model_validate_json(body[:length])
        except pydantic.ValidationError as error:
            raise BadRequestError(400, told(error)) from error
        self._asked = asked
        tensors = self._tensors(body[length:])
        missing = [known["name"] for known in INPUTS if known["name"] not in (*tensors, *_OPTIONAL)]
        if missing:
            raise BadRequestError(400, f"Input '{missing[0]}' is missing.")
        user, start = tensors["user"], tensors.get("start", [0])
        if len(user) != 1 or len(start) != 1:
            raise BadRequestError(400, "Inputs 'user' and 'start' have one element each.")
        try:
            self.request = RankRequest.model_validate(
                {
                    "user": user[0],
                    "start": start[0],
                    "events": tensors.get("events", []),
                    "candidates": tensors["candidates"],
                }
            )
        except pydantic.ValidationError as error:
            raise BadRequestError(400, told(error)) from error

    def _tensors(self, binary: bytes) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        names = {known["name"] for known in INPUTS}
        for tensor in self._asked.inputs:
            if tensor.name not in names or tensor.name in found:
                raise BadRequestError(400, f"Input '{tensor.name[:64]}' is unknown, or given twice.")
            count = int(np.prod(tensor.shape, dtype=np.int64))
            size = tensor.parameters.get("binary_data_size")
            if size is None:
                found[tensor.name] = _listed(tensor, count)
                continue
            if not isinstance(size, int) or not 0 <= size <= len(binary) or tensor.data is not None:
                raise BadRequestError(400, f"Input '{tensor.name}' has no {size} bytes of binary data.")
            found[tensor.name] = _unpacked(tensor, count, binary[:size])
            binary = binary[size:]
        if binary:
            raise BadRequestError(400, f"{len(binary)} bytes of binary data belong to no input.")
        return found

    def answer(self, model: str, ranked: Ranked) -> tuple[bytes, dict[str, str]]:
        """The body of the answer and its headers."""
        arrays: dict[str, NDArray[Any]] = {
            "scores": ranked.scores.astype("<f4"),
            "history": np.array([ranked.total, ranked.seen, ranked.cached], "<i8"),
        }
        wanted = self._asked.outputs or [_Output(name=name) for name in arrays]
        by_default = self._asked.parameters.get("binary_data_output", False)
        outputs, binary = [], b""
        for output in wanted:
            if output.name not in arrays:
                raise BadRequestError(400, f"There is no output '{output.name[:64]}'; there are scores and history.")
            array = arrays[output.name]
            datatype = next(known["datatype"] for known in OUTPUTS if known["name"] == output.name)
            told: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": list(array.shape)}
            if output.parameters.get("binary_data", by_default):
                told["parameters"] = {"binary_data_size": array.nbytes}
                binary += array.tobytes()
            else:
                told["data"] = array.tolist()
            outputs.append(told)
        head: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": outputs}
        if self._asked.id:
            head["id"] = self._asked.id
        text = to_json(head)
        if not binary:
            return text, {"Content-Type": "application/json"}
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
        return text + binary, headers


def _listed(tensor: _Tensor, count: int) -> list[Any]:
    data = tensor.data
    if data is not None and len(tensor.shape) == 2 and len(data) == tensor.shape[0] == 1 and isinstance(data[0], list):
        data = data[0]
    if data is None or len(data) != count:
        raise BadRequestError(400, f"Input '{tensor.name}' has shape {tensor.shape}, and not as many elements.")
    kind = str if tensor.datatype == "BYTES" else int
    if not all(type(element) is kind for element in data):
        raise BadRequestError(400, f"Input '{tensor.name}' is {tensor.datatype}, and an element is not.")
    return data


def _unpacked(tensor: _Tensor, count: int, content: bytes) -> list[Any]:
    if tensor.datatype != "BYTES":
        dtype = _NUMBERS[tensor.datatype]
        if len(content) != count * dtype.itemsize:
            raise BadRequestError(400, f"Input '{tensor.name}' has {len(content)} bytes for {count} elements.")
        numbers: list[Any] = np.frombuffer(content, dtype).tolist()
        return numbers
    texts: list[str] = []
    at = 0
    while at + 4 <= len(content) and len(texts) <= count:
        (length,) = struct.unpack_from("<I", content, at)
        at += 4 + length
        try:
            texts.append(content[at - length : at].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadRequestError(400, f"Input '{tensor.name}' has an element that is no UTF-8.") from error
    if at != len(content) or len(texts) != count:
        raise BadRequestError(400, f"Input '{tensor.name}' is not {count} elements, each behind its length.")
    return texts
