"""A file's constants, with as much data as they claim."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from helm_gym.policies.onnx_check.rules import MAX_AXIS, MAX_RANK, refuse
from helm_gym.policies.onnx_check.values import DTYPES, FLOATS

_LISTS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT32: "int32_data",
    TensorProto.INT64: "int64_data",
    TensorProto.BOOL: "int32_data",
}


def array_of(tensor: onnx.TensorProto, what: str) -> NDArray[Any]:
    """A tensor's values; nothing is allocated beyond what the file holds.

    Raises:
        RefusedError: data elsewhere, of a type that is not allowed, of another size than claimed, or NaN.
    """
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        refuse("external-data", f"{what} keeps its weights in another file; export with external_data=False.")
    if tensor.data_type not in DTYPES:
        refuse(
            "types", f"{what} is of type {_type_name(tensor.data_type)}; float32, float64, int32, int64, bool can be."
        )
    dtype, listed = DTYPES[tensor.data_type], _LISTS[tensor.data_type]
    dims = list(tensor.dims)
    if len(dims) > MAX_RANK or any(not 0 <= n <= MAX_AXIS for n in dims):
        refuse("shape", f"{what} claims a shape that cannot be; {MAX_RANK} axes of up to {MAX_AXIS} are allowed.")
    size = math.prod(dims)
    lists = [name for name in {*_LISTS.values(), "uint64_data", "string_data"} if len(getattr(tensor, name))]
    raw = tensor.HasField("raw_data")
    held = len(tensor.raw_data) if raw else len(getattr(tensor, listed)) * dtype.itemsize
    if held != size * dtype.itemsize or (set(lists) - {listed}) or (raw and lists) or tensor.HasField("segment"):
        refuse(
            "constants", f"{what} claims {size} elements, which are {size * dtype.itemsize} bytes, and holds {held}."
        )
    if raw:
        array = np.frombuffer(tensor.raw_data, np.uint8 if tensor.data_type == TensorProto.BOOL else dtype)
    else:
        array = np.array(getattr(tensor, listed), np.int64 if "int" in listed else dtype)
    if tensor.data_type == TensorProto.BOOL:
        if (array > 1).any() or (array < 0).any():
            refuse("constants", f"{what} is of type bool and holds other values than 0 and 1.")
    elif tensor.data_type in FLOATS and np.isnan(array).any():
        refuse("constants", f"{what} holds NaN.")
    return array.astype(dtype, copy=False).reshape(dims)


def _type_name(number: int) -> str:
    return TensorProto.DataType.Name(number) if number in TensorProto.DataType.values() else str(number)
