"""A profile of one's own model: its shape is read from the file of weights, the rest is another profile's."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Literal, NamedTuple

from helm_gym import profile as profiles
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Model, Pool, Profile
from helm_gym.ranges import check_name
from helm_gym.text import shown
from real_backend.hstu.model import HSTU
from real_backend.hstu.weights import META, Weights, open_table, put, read_weights, save_weights

_NONE = ("", "0", "none", "null", "false")


class Choices(NamedTuple):
    """What a file of weights does not say by its shapes; None: its metadata, or the base profile, says it."""

    heads: int | None = None
    attention_n: int | None = None
    max_history: int | None = None
    max_candidates: int | None = None
    dtype: Literal["float32", "bfloat16"] | None = None


def describe(file: pathlib.Path, base: Profile, choices: Choices) -> tuple[Model, Weights]:
    """The model that a file of weights is of.

    Raises:
        InvalidInputError: it cannot be served exactly with a cache, or something has to be said that is not.
    """
    weights = read_weights(file)
    parameters, said = weights.parameters, _Said(weights.metadata, file)
    said.refuse_what_a_cache_would_change()
    layer = {name: parameters[f"layers.0.{name}"] for name in META}
    for name in ("uvqk", "output"):
        if layer[name].dim() != 2:
            raise InvalidInputError(f"File of weights {file}: {name} must be a matrix, not {tuple(layer[name].shape)}.")
    d, columns = layer["uvqk"].shape
    wide_v, rest = divmod(layer["output"].shape[0], 3)
    wide_qk = columns // 2 - wide_v
    if rest or columns % 2 or wide_qk < 1 or layer["output"].shape[1] != d:
        raise InvalidInputError(
            f"File of weights {file}: uvqk {tuple(layer['uvqk'].shape)} and output {tuple(layer['output'].shape)} do "
            "not go together; (d, 2 H (v + qk)) and (3 H v, d) are needed."
        )
    norms = layer["out_norm_weight"].numel()
    group = norms != wide_v or said.flag("use_group_norm")
    heads = norms if group else choices.heads or said.number("num_heads")
    if heads is None:
        raise InvalidInputError(f"File of weights {file} does not tell how many heads there are; give --heads.")
    if heads < 1 or wide_v % heads or wide_qk % heads or (choices.heads or heads) != heads:
        raise InvalidInputError(
            f"File of weights {file}: {wide_v} columns of V and {wide_qk} of Q and K are not {choices.heads or heads} "
            "heads; give the number that it has (--heads)."
        )
    n = choices.attention_n or said.number("attention_n")
    if n is None:
        raise InvalidInputError(
            f"File of weights {file} does not tell N, which attention is divided by; give --attention-n, the "
            "max_seq_len that the source is called with (one that takes each batch's own longest history for it gives "
            "another score at each call, and cannot be served exactly with a cache)."
        )
    absolute = "position" in parameters
    history = parameters["position"].shape[0] if absolute else choices.max_history or said.number("max_history")
    if choices.max_history and history != choices.max_history:
        raise InvalidInputError(f"File of weights {file} has {history} positions; leave --max-history out.")
    model = dataclasses.replace(
        base.model,
        layers=1 + max(int(name.split(".")[1]) for name in parameters if name.startswith("layers.")),
        heads=heads,
        embedding_dim=d,
        qk_dim=wide_qk // heads,
        v_dim=wide_v // heads,
        max_history=history or base.model.max_history,
        max_candidates=choices.max_candidates or said.number("max_candidates") or base.model.max_candidates,
        dtype=choices.dtype or base.model.dtype,
        norm="group" if group else "layer",
        head="linear" if "head" in parameters else "dot",
        positions="absolute" if absolute else "none",
        attention_n=n,
    )
    put(parameters, HSTU(model), file)  # all shapes are held against those of the model
    _scale_queries(weights, model, said)
    return model, weights


def import_model(
    file: pathlib.Path, out: pathlib.Path, base: Profile, choices: Choices, table: pathlib.Path | None = None
) -> Profile:
    """Writes a profile that serves the weights of ``file``, and the weights beside it under this project's names.

    Args:
        out: of the profile, .yaml; the weights get its name with .safetensors.
        base: machine, pool, link, workload and cost model; its pages are made to fit the model's rows and tokens.
        table: the item table, which stays where it is and is mapped; without it rows are drawn from ``model.seed``.

    Raises:
        InvalidInputError: see ``describe`` and ``open_table``, and where the parts of the profile do not fit.
    """
    name = check_name("--out without its ending, the profile's name,", out.stem)
    model, weights = describe(file, base, choices)
    items = base.population.items
    if table is not None:
        items = open_table(table, model.embedding_dim).shape[0]
    beside = out.with_suffix(".safetensors")
    if beside.exists() and beside.samefile(file):
        raise InvalidInputError(f"--out {out} would overwrite {file}; give another name.")
    model = dataclasses.replace(model, weights=beside.name, table="" if table is None else str(table.absolute()))
    population = dataclasses.replace(
        base.population,
        items=items,
        mean_history=min(base.population.mean_history, float(model.max_history)),
        candidates=min(base.population.candidates, model.max_candidates),
    )
    cost = base.cost
    if _shape(model) != _shape(base.model):
        cost = dataclasses.replace(cost, machine=f"of {base.name}, not calibrated", date="", mean_error=math.nan)
    profile = dataclasses.replace(
        base,
        name=name,
        description=f"Weights of {shown(file.name)[:100]} on the machine and the workload of {base.name}.",
        model=model,
        pool=fit_pool(base, model),
        population=population,
        cost=cost,
    )
    save_weights(weights.parameters, beside, _metadata(model))
    profiles.save(profile, out)
    return profile


def fit_pool(base: Profile, model: Model) -> Pool:
    """The base profile's pool in pages that rows and tokens of ``model`` fill exactly, of about its size."""
    element = 2 if model.dtype == "bfloat16" else 4
    token = model.layers * model.heads * (model.qk_dim + model.v_dim) * element
    unit = math.lcm(model.embedding_dim * element, token)
    size = unit * max(1, round(base.pool.page_bytes / unit))
    pages = max(2, round(base.pool.pages * base.pool.page_bytes / size))
    return dataclasses.replace(base.pool, page_bytes=size, pages=pages)


def _shape(model: Model) -> tuple[object, ...]:
    return dataclasses.astuple(dataclasses.replace(model, weights="", table="", seed=0, attention_n=model.divisor))


def _metadata(model: Model) -> dict[str, str]:
    """What shapes do not tell, so that the file can be imported again as it is."""
    told = {"num_heads": model.heads, "attention_n": model.divisor}
    told |= {name: getattr(model, name) for name in ("max_history", "max_candidates")}
    return {name: str(value) for name, value in told.items()}


def _scale_queries(weights: Weights, model: Model, said: _Said) -> None:
    """Meta's ``attn_alpha`` other than 1 / sqrt(d_qk): the factor between them goes into Q, which is exact."""
    factor = said.real("attn_alpha") * math.sqrt(model.qk_dim)
    if factor in (0.0, 1.0):
        return
    h = model.heads
    queries = slice(2 * h * model.v_dim, 2 * h * model.v_dim + h * model.qk_dim)
    for layer in range(model.layers):
        weights.parameters[f"layers.{layer}.uvqk"][:, queries] *= factor
        weights.parameters[f"layers.{layer}.uvqk_bias"][queries] *= factor


class _Said:
    """A file's metadata: texts, with the names of Meta's STULayerConfig."""

    def __init__(self, metadata: dict[str, str], file: pathlib.Path):
        self._metadata, self._file = metadata, file

    def flag(self, name: str) -> bool:
        return self._metadata.get(name, "").lower() not in _NONE

    def number(self, name: str) -> int | None:
        text = self._metadata.get(name)
        if text is None:
            return None
        if not text.isdecimal() or len(text) > 9 or int(text) < 1:
            raise InvalidInputError(f"File of weights {self._file}: metadata {name} is {shown(text)}, not a count.")
        return int(text)

    def real(self, name: str) -> float:
        if not self.flag(name):
            return 0.0
        try:
            value = float(self._metadata[name])
        except ValueError:
            value = math.nan
        if not 0.0 < value < 1e6:
            raise InvalidInputError(
                f"File of weights {self._file}: metadata {name} is {shown(self._metadata[name])}, not a number above 0."
            )
        return value

    def refuse_what_a_cache_would_change(self) -> None:
        for name, reason in (
            ("contextual_seq_len", "contextual tokens see all of the history, and what is cached of them goes stale"),
            ("max_attn_len", "attention over a window of the history is not built"),
        ):
            if self.flag(name):
                raise InvalidInputError(f"File of weights {self._file}: metadata {name} is not 0; {reason}.")
        for name, reason in (
            ("causal", "history that sees what comes after it changes as the history grows, and cannot be cached"),
            ("target_aware", "candidates that see each other depend on who is asked about with them"),
        ):
            if name in self._metadata and not self.flag(name):
                raise InvalidInputError(f"File of weights {self._file}: metadata {name} is false; {reason}.")
