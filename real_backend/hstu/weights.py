"""A model's files: weights and item table in safetensors, under this project's names or those of Meta's STUStack.

Nothing is unpickled. Names, shapes, types and values are checked before any of it is used; docs/models.md lists them.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from helm_gym import files
from helm_gym.errors import InvalidInputError
from helm_gym.machine_memory import require
from helm_gym.text import shown

# A layer's parameters, and what Meta's STULayer (generative-recommenders, modules/stu.py) calls them.
META = {
    "norm_weight": "_input_norm_weight",
    "norm_bias": "_input_norm_bias",
    "uvqk": "_uvqk_weight",
    "uvqk_bias": "_uvqk_beta",
    "out_norm_weight": "_output_norm_weight",
    "out_norm_bias": "_output_norm_bias",
    "output": "_output_weight",
}
_OURS = {meta: name for name, meta in META.items()}
AROUND = ("position", "candidate", "norm_weight", "norm_bias", "head", "head_bias")  # the layers
TABLE = "table"
_LAYER = re.compile(r"(?:.*\.)?(?:layers|_stu_layers)\.(\d{1,3})\.(\w+)")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_STALE = "with a cache that is not exact, since keys that are cached depend on it"
# What cannot be served with a cache, by the names that public code gives it, and why.
_REFUSED = (
    (
        r"timestamp_embeddings|_ts_w\b|time_bucket",
        f"time relative to the query, which is another at each visit; {_STALE}",
    ),
    (
        r"position_embeddings_weight",
        f"positions counted from the end of the history, where all change as it grows; {_STALE}; give absolute ones as "
        "'position' and 'candidate'",
    ),
    (r"_pos_w\b|rel_attn|relative", "a relative attention bias, which is not built"),
    (r"contextual", f"contextual tokens, which see all of the history; {_STALE}"),
    (
        r"_attention_layers|\._uvqk\b|\._o\.weight",
        "HSTU's research variant; the production variant (STUStack) is built",
    ),
)


class Weights(NamedTuple):
    """Parameters by the names of ``HSTU.state_dict``, float32, and what the file says beside them."""

    parameters: dict[str, torch.Tensor]
    metadata: dict[str, str]
    meta_names: bool  # the file has Meta's names


@contextlib.contextmanager
def opened(path: pathlib.Path, what: str) -> Iterator[Any]:
    """A safetensors file, mapped and not read.

    Raises:
        InvalidInputError: it is not there, no regular file, or not in that format.
    """
    instead = "give a safetensors file (safetensors.torch.save_file writes one of a state dict)"
    try:
        files.read_start(path, 8)
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InvalidInputError(f"{what} {path} cannot be read: {files.reason(error)}; {instead}.") from error


def read_weights(path: pathlib.Path) -> Weights:
    """Reads a file of weights under either set of names.

    Raises:
        InvalidInputError: what is in it cannot be served exactly with a cache, is not a float or not finite, or a layer
            lacks a parameter.
    """
    found: dict[str, torch.Tensor] = {}
    meta = False
    with opened(path, "File of weights") as file:
        require(3 * os.path.getsize(path), f"File of weights {path}", "give one that fits")
        metadata = {str(key): str(value) for key, value in (file.metadata() or {}).items()}
        for source in file.keys():  # noqa: SIM118  # no mapping, and this is how its names are listed
            name, of_meta = _own_name(source, path)
            if name in found:
                raise InvalidInputError(f"File of weights {path}: two tensors are {name}; leave one out.")
            found[name] = _checked(file.get_tensor(source), source, path)
            meta = meta or of_meta
    _check_layers(found, path)
    return Weights(found, metadata, meta)


def _own_name(source: str, path: pathlib.Path) -> tuple[str, bool]:
    """A tensor's name in ``HSTU.state_dict``, and whether Meta gave it another."""
    if source in AROUND:
        return source, False
    layer = _LAYER.fullmatch(source)
    if layer is not None:
        number, name = int(layer[1]), layer[2]
        if name in META or name in _OURS:
            return f"layers.{number}.{_OURS.get(name, name)}", name in _OURS
    for pattern, reason in _REFUSED:
        if re.search(pattern, source):
            raise InvalidInputError(f"File of weights {path}: {shown(source)} stands for {reason}.")
    raise InvalidInputError(
        f"File of weights {path}: {shown(source)} is no parameter of this HSTU; docs/models.md lists them, so leave "
        "out what does not belong to it."
    )


def _checked(tensor: torch.Tensor, name: str, path: pathlib.Path) -> torch.Tensor:
    if tensor.dtype not in _FLOATS:
        raise InvalidInputError(
            f"File of weights {path}: {shown(name)} is {tensor.dtype}; give float32, float16 or bfloat16."
        )
    tensor = tensor.to(torch.float32, copy=True)  # and not a view of the file, which may change
    if not tensor.isfinite().all():
        raise InvalidInputError(f"File of weights {path}: {shown(name)} has values that are not finite.")
    return tensor


def _check_layers(found: Mapping[str, torch.Tensor], path: pathlib.Path) -> None:
    numbers = {int(name.split(".")[1]) for name in found if name.startswith("layers.")}
    if not numbers:
        raise InvalidInputError(f"File of weights {path} has no layer; docs/models.md lists the names of one.")
    for number in range(max(numbers) + 1):
        for name in META:
            if f"layers.{number}.{name}" not in found:
                raise InvalidInputError(
                    f"File of weights {path}: layer {number} has no {name} (Meta: {META[name]}); give all {len(META)}."
                )


def put(parameters: Mapping[str, torch.Tensor], hstu: torch.nn.Module, path: pathlib.Path) -> None:
    """Puts a file's parameters into ``hstu``, in place.

    Raises:
        InvalidInputError: names or shapes are not those of its model.
    """
    expected = hstu.state_dict()
    for name in sorted(expected.keys() | parameters.keys()):
        given, wanted = parameters.get(name), expected.get(name)
        if given is None or wanted is None or given.shape != wanted.shape:
            has, needs = ("none" if t is None else str(tuple(t.shape)) for t in (given, wanted))
            raise InvalidInputError(
                f"File of weights {path} does not go with the profile's model: of {name} it has {has} where {needs} is "
                "needed; docs/models.md says which belong together."
            )
    hstu.load_state_dict(parameters)


def save_weights(parameters: Mapping[str, torch.Tensor], path: pathlib.Path, metadata: Mapping[str, str]) -> None:
    """Writes parameters under this project's names, whole or not at all."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in parameters.items()}
    files.write(path, safetensors.torch.save(whole, dict(metadata)))


def open_table(path: pathlib.Path, embedding_dim: int, items: int | None = None) -> torch.Tensor:
    """The item table ``table`` (items, embedding_dim) of a file, mapped: pages are read where rows are looked up.

    It keeps its type: rows are converted to the model's as they come up.

    Raises:
        InvalidInputError: there is no such tensor, or its shape or type is another.
    """
    with opened(path, "Item table") as file:
        names = list(file.keys())
        if names != [TABLE]:
            told = ", ".join(shown(name) for name in names[:5]) or "nothing"
            raise InvalidInputError(
                f"Item table {path} holds {told}; give one tensor named '{TABLE}' and nothing else."
            )
        table: torch.Tensor = file.get_tensor(TABLE)
    wanted = f"({'items' if items is None else items}, {embedding_dim})"
    if table.dim() != 2 or table.shape[1] != embedding_dim or (items is not None and table.shape[0] != items):
        raise InvalidInputError(f"Item table {path} has shape {tuple(table.shape)}; {wanted} is needed.")
    if table.dtype not in _FLOATS:
        raise InvalidInputError(f"Item table {path} is {table.dtype}; give float32, float16 or bfloat16.")
    return table
