"""Profiles: a machine and a model, as a frozen dataclass with a YAML form that is checked key by key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
from typing import Annotated, Literal

from helm_gym import yaml_form
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.ranges import Name, Text, Within, check_name, check_ranges

PROFILES = pathlib.Path(__file__).parent / "profiles"
_INDICES = 2**31  # what the memory manager's tables can number
_Share = Annotated[float, Within(0, 1)]
_Cost = Annotated[float, Within(0, 1e6)]  # ms


@dataclasses.dataclass(frozen=True)
class Model:
    """The HSTU model (production variant, real_backend/hstu).

    Attributes:
        norm: of a layer's output before it is gated, over all heads (``layer``) or over each apart (``group``).
        head: what makes a score of a candidate: a norm and a linear layer, or the dot product of the normalised output
            with the candidate's own row.
        positions: counted from the start of the history, or not known to the model.
        attention_n: what attention is divided by; 0: ``max_history + max_candidates``.
        weights, table: safetensors files (docs/models.md); where empty they are drawn from ``seed``. A profile's file
            may name them relative to itself.
    """

    layers: Annotated[int, Within(1, 128)]
    heads: Annotated[int, Within(1, 256)]
    embedding_dim: Annotated[int, Within(1, 65_536)]
    qk_dim: Annotated[int, Within(1, 65_536)]
    v_dim: Annotated[int, Within(1, 65_536)]
    max_history: Annotated[int, Within(1, 65_536)]
    max_candidates: Annotated[int, Within(1, 4096)]
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: Annotated[int, Within(0, 2**32 - 1)] = 0
    norm: Literal["layer", "group"] = "layer"
    head: Literal["linear", "dot"] = "linear"
    positions: Literal["absolute", "none"] = "absolute"
    attention_n: Annotated[int, Within(0, 2**24)] = 0
    weights: Annotated[str, Text(4096)] = ""
    table: Annotated[str, Text(4096)] = ""

    @property
    def divisor(self) -> int:
        """N of the paper, a constant of the model and not of a call."""
        return self.attention_n or self.max_history + self.max_candidates


_FILES = ("weights", "table")  # of a model: no time depends on what is in them


@dataclasses.dataclass(frozen=True)
class Pool:
    """The page pool that both caches share. ``shadow_pages``: depth of the shadow lists on each side.

    Attributes:
        prefilled: whether EMB holds the most popular rows at the start, as a server loads them, and not none.
    """

    pages: Annotated[int, Within(2, 2**24)]
    page_bytes: Annotated[int, Within(1, 2**30)]
    min_alpha: _Share = 0.05
    max_alpha: _Share = 0.95
    page_moves_per_interval: Annotated[int, Within(1, 2**24)] = 50
    shadow_pages: Annotated[int, Within(0, 2**24)] = 64
    prefilled: bool = False


@dataclasses.dataclass(frozen=True)
class Link:
    """The host link, one for both directions.

    Attributes:
        background_share: of the bandwidth, which background traffic takes while there is any.
        modelled: transfers are timed by these figures and not by a clock.
        gather_gb_per_s: of rows, where reading them (from a disk, at random from memory) is slower than the link; 0: as
            fast.
    """

    bandwidth_gb_per_s: Annotated[float, Within(0, 1e6, above=True)]
    latency_ms: _Cost
    background_share: _Share = 0.1
    modelled: bool = True
    gather_gb_per_s: Annotated[float, Within(0, 1e6)] = 0.0


@dataclasses.dataclass(frozen=True)
class KvMiss:
    """How a KV miss is served: ``recompute``, ``copy`` from the host tier if it holds the user, or the ``cheapest``."""

    policy: Literal["recompute", "copy", "cheapest"] = "recompute"
    host_users: Annotated[int, Within(0, 2**24)] = 0


@dataclasses.dataclass(frozen=True)
class Population:
    """Users, items and requests as the profile's workload has them at rest."""

    users: Annotated[int, Within(2, 2**27)]
    items: Annotated[int, Within(1, 2**30)]
    hot_share: _Share
    hot_users: Annotated[int, Within(1, 512)]
    mean_history: Annotated[float, Within(1, 65_536)]
    log_sigma: Annotated[float, Within(0, 4)]
    item_zipf: Annotated[float, Within(0.4, 1.4)]
    new_share: _Share
    turnover: _Share
    delta_tokens: Annotated[float, Within(1, 256)]
    candidates: Annotated[int, Within(1, 4096)]


@dataclasses.dataclass(frozen=True)
class Interval:
    """The clock: a decision every ``requests``, telemetry over the last ``window`` requests."""

    requests: Annotated[int, Within(1, 10_000)] = 50
    window: Annotated[int, Within(1, 1_000_000)] = 200


@dataclasses.dataclass(frozen=True)
class CostModel:
    """``T(ms) = base + per_request + per_token n + per_pair n L + per_context L``, all but base summed over requests.

    n: new tokens (delta or recomputed history, and candidates); L: history tokens. Of a history that is computed in
    chunks each chunk is a request of its own, with the history up to its end. Where the engine pads (``Profile.pads``),
    n L and L are those of the padded micro-batch. Fitted by ``helm-gym calibrate``.

    Attributes:
        base_ms: of a micro-batch, whatever is in it.
        per_moved_row_ms: of an embedding row that changes its place in the pool when alpha moves.
        probe_ms: what the measured rung's probe took on the machine that was fitted, by which the speed of another is
            known; where it is 0 the model's own figure for it stands in, which is some per cent off.
    """

    base_ms: _Cost
    per_token_ms: _Cost
    per_pair_ms: _Cost
    per_context_ms: _Cost
    probe_ms: _Cost = 0.0
    machine: Annotated[str, Text(200)] = ""
    date: Annotated[str, Text(40)] = ""
    mean_error: Annotated[float, Within(-1e6, 1e6, or_nan=True)] = math.nan  # of either sign; NaN: nothing was fitted
    per_request_ms: _Cost = 0.0
    per_moved_row_ms: _Cost = 0.0


@dataclasses.dataclass(frozen=True)
class Profile:
    name: Annotated[str, Name()]
    description: Annotated[str, Text(500)]
    device: Literal["cpu", "cuda"]
    model: Model
    pool: Pool
    link: Link
    kv_miss: KvMiss
    population: Population
    cost: CostModel
    slo_ms: Annotated[float, Within(0, 1e7, above=True)]
    interval: Interval = Interval()
    max_batch: Annotated[int, Within(1, 1024)] = 1
    max_step: Annotated[float, Within(0, 1, above=True)] = 0.1
    chunk_tokens: Annotated[int, Within(0, 65_536)] = 0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def bytes_per_element(self) -> int:
        return 2 if self.model.dtype == "bfloat16" else 4

    @property
    def pads(self) -> bool:
        """Whether the engine pads a micro-batch's requests to the longest.

        It does on the CPU for what its compiled attention is not written for (real_backend/hstu/paged.py), and where a
        GPU's machine lacks Triton, which costs do not know.
        """
        m = self.model
        compiled = m.dtype == "float32" and (m.norm, m.head, m.positions) == ("layer", "linear", "absolute")
        return self.device == "cpu" and not compiled

    @property
    def row_bytes(self) -> int:
        return self.model.embedding_dim * self.bytes_per_element

    @property
    def kv_bytes_per_token(self) -> int:
        m = self.model
        return m.layers * m.heads * (m.qk_dim + m.v_dim) * self.bytes_per_element

    @property
    def rows_per_page(self) -> int:
        return self.pool.page_bytes // self.row_bytes

    @property
    def tokens_per_page(self) -> int:
        return self.pool.page_bytes // self.kv_bytes_per_token

    @property
    def staging_pages(self) -> int:
        """Pages behind the pool, for what a micro-batch reads and finds no room for."""
        tokens = self.max_batch * (self.model.max_history + self.model.max_candidates)
        return -(-tokens // self.rows_per_page)

    @property
    def pages_per_user(self) -> int:
        """Pages that a user with the longest history occupies."""
        return -(-self.model.max_history // self.tokens_per_page)

    @property
    def memory_account(self) -> dict[str, int]:
        """Bytes on the device beside the model's weights and intermediate values.

        ``pool``: both caches, with the remainders of pages that neither a row nor a token fills. ``staging``: behind
        the pool, for rows that a micro-batch reads and finds no slot for. ``batch_kv``: K and V of a micro-batch, where
        the engine copies them (``pads``).
        """
        users = self.max_batch * self.pages_per_user if self.pads else 0
        page = self.pool.page_bytes
        return {"pool": self.pool.pages * page, "staging": self.staging_pages * page, "batch_kv": users * page}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with anything that decides what a backend reports."""
        content = dataclasses.asdict(self) | {"name": "", "description": ""}
        content["cost"] |= {"machine": "", "date": "", "mean_error": 0.0}
        model, pool = content["model"], content["pool"]
        for name in _FILES:
            del model[name]
        # Fields that came later count from their first use on: what was made before is still of the same profile.
        for part, field, unused in (
            (content, "chunk_tokens", 0),
            (content["link"], "gather_gb_per_s", 0.0),
            (content["cost"], "per_request_ms", 0.0),
            (content["cost"], "per_moved_row_ms", 0.0),
            (model, "norm", "layer"),
            (model, "head", "linear"),
            (model, "positions", "absolute"),
            (model, "attention_n", 0),
            (pool, "prefilled", False),
        ):
            if part[field] == unused:
                del part[field]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def row_ms(self) -> float:
        """Time of one embedding row over the host link, or from where it is read, without the transfer's latency."""
        slower = min(self.link.bandwidth_gb_per_s, self.link.gather_gb_per_s or self.link.bandwidth_gb_per_s)
        return self.row_bytes / (slower * 1e6)


def _check(profile: Profile) -> None:
    """Raises InvalidInputError where a value is out of its range, or the parts of a profile do not fit each other."""
    check_name("A profile's name", profile.name)
    where = f"Profile '{profile.name}'"
    check_ranges(profile, where)
    pool, population, cost = profile.pool, profile.population, profile.cost
    if profile.tokens_per_page < 1 or profile.rows_per_page < 1:
        raise InvalidInputError(
            f"{where}: a page of {pool.page_bytes} B cannot hold one token's KV ({profile.kv_bytes_per_token} B) and "
            f"one row ({profile.row_bytes} B); raise pool.page_bytes."
        )
    kv_pages = pool.pages - round(pool.max_alpha * pool.pages)
    if kv_pages < profile.pages_per_user:
        raise InvalidInputError(
            f"{where}: the pool cannot hold one user: {profile.pages_per_user} pages are needed for "
            f"{profile.model.max_history} tokens and KV keeps {kv_pages} at max_alpha {pool.max_alpha}; "
            "raise pool.pages or lower pool.max_alpha or model.max_history."
        )
    if not 0 < pool.min_alpha < pool.max_alpha < 1:
        raise InvalidInputError(f"{where}: 0 < pool.min_alpha < pool.max_alpha < 1 does not hold.")
    if profile.interval.window % profile.interval.requests:
        raise InvalidInputError(f"{where}: interval.window must be a multiple of interval.requests.")
    if population.mean_history > profile.model.max_history:
        raise InvalidInputError(
            f"{where}: population.mean_history {population.mean_history} is longer than the model's maximum of "
            f"{profile.model.max_history} tokens."
        )
    if population.hot_users * 2 > population.users or population.users <= profile.interval.requests:
        raise InvalidInputError(
            f"{where}: population.users must be at least twice population.hot_users and above interval.requests."
        )
    if population.candidates > profile.model.max_candidates:
        raise InvalidInputError(
            f"{where}: population.candidates {population.candidates} are more than the model's maximum of "
            f"{profile.model.max_candidates}."
        )
    if cost.base_ms + cost.per_request_ms + cost.per_token_ms + cost.per_pair_ms + cost.per_context_ms <= 0:
        raise InvalidInputError(f"{where}: all costs are 0; one of base_ms, per_token_ms, ... must be above 0.")
    slots = (pool.pages + profile.staging_pages) * profile.rows_per_page
    if slots >= _INDICES:
        raise InvalidInputError(
            f"{where}: {pool.pages} pages of {profile.rows_per_page} rows are {slots:,} slots, with their staging; at "
            f"most {_INDICES - 1:,} can be numbered, so lower pool.pages or raise model.embedding_dim."
        )


def names() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load(name_or_path: str | pathlib.Path) -> Profile:
    """Opens a shipped profile by name, or any profile by the path of its YAML file.

    Raises:
        UnknownNameError: no such profile, or a key that a profile does not have.
        InvalidInputError: the file is not YAML, or a value is of another type, out of its range or does not fit the
            others.
    """
    path = pathlib.Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if str(name_or_path) not in names():
            raise UnknownNameError("profile", str(name_or_path), names())
        path = PROFILES / f"{name_or_path}.yaml"
    profile: Profile = yaml_form.read(Profile, path)
    files = {name: getattr(profile.model, name) for name in _FILES}
    if any(files.values()):
        files = {name: file and str(path.parent.absolute() / file) for name, file in files.items()}
        profile = dataclasses.replace(profile, model=dataclasses.replace(profile.model, **files))
    return profile


def save(profile: Profile, path: pathlib.Path) -> None:
    """Writes ``profile`` as YAML, whole or not at all.

    Raises:
        InvalidInputError: the place cannot be written to.
    """
    yaml_form.save(profile, path)
