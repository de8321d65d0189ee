"""Profiles: a machine and a model, as a frozen dataclass with a YAML form that is checked key by key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import operator
import pathlib
import types
import typing
from typing import Any, Literal

import yaml

from helm_gym.errors import InvalidInputError, UnknownNameError

_SIGNED = "cost.mean_error"  # a report about the fit: of either sign, NaN where nothing was fitted
_POSITIVE = (
    *(f"model.{name}" for name in ("layers", "heads", "embedding_dim", "qk_dim", "v_dim", "max_history")),
    *("model.max_candidates", "pool.pages", "pool.page_bytes", "link.bandwidth_gb_per_s", "population.users"),
    *("population.items", "population.hot_users", "interval.requests", "interval.window", "slo_ms", "max_batch"),
)
PROFILES = pathlib.Path(__file__).parent / "profiles"


@dataclasses.dataclass(frozen=True)
class Model:
    """The HSTU model (production variant, real_backend/hstu)."""

    layers: int
    heads: int
    embedding_dim: int
    qk_dim: int
    v_dim: int
    max_history: int
    max_candidates: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Pool:
    """The page pool that both caches share. ``shadow_pages``: depth of the shadow lists on each side."""

    pages: int
    page_bytes: int
    min_alpha: float = 0.05
    max_alpha: float = 0.95
    page_moves_per_interval: int = 50
    shadow_pages: int = 64


@dataclasses.dataclass(frozen=True)
class Link:
    """The host link; ``modelled`` says that transfers are timed by these figures and not by a clock."""

    bandwidth_gb_per_s: float
    latency_ms: float
    background_share: float = 0.1
    modelled: bool = True


@dataclasses.dataclass(frozen=True)
class KvMiss:
    """How a KV miss is served: ``recompute``, ``copy`` from the host tier if it holds the user, or the ``cheapest``."""

    policy: Literal["recompute", "copy", "cheapest"] = "recompute"
    host_users: int = 0


@dataclasses.dataclass(frozen=True)
class Population:
    """Users, items and requests as the profile's workload has them at rest."""

    users: int
    items: int
    hot_share: float
    hot_users: int
    mean_history: float
    log_sigma: float
    item_zipf: float
    new_share: float
    turnover: float
    delta_tokens: float
    candidates: int


@dataclasses.dataclass(frozen=True)
class Interval:
    """The clock: a decision every ``requests``, telemetry over the last ``window`` requests."""

    requests: int = 50
    window: int = 200


@dataclasses.dataclass(frozen=True)
class CostModel:
    """``T(ms) = base + per_token n + per_pair n L + per_context L``, summed over a micro-batch's requests.

    n: new tokens (delta or recomputed history, and candidates); L: history tokens. Fitted by ``helm-gym calibrate``.

    Attributes:
        probe_ms: what the measured rung's probe took on the machine that was fitted, by which the speed of another is
            known; where it is 0 the model's own figure for it stands in, which is some per cent off.
    """

    base_ms: float
    per_token_ms: float
    per_pair_ms: float
    per_context_ms: float
    probe_ms: float = 0.0
    machine: str = ""
    date: str = ""
    mean_error: float = math.nan


@dataclasses.dataclass(frozen=True)
class Profile:
    name: str
    description: str
    device: Literal["cpu", "cuda"]
    model: Model
    pool: Pool
    link: Link
    kv_miss: KvMiss
    population: Population
    cost: CostModel
    slo_ms: float
    interval: Interval = Interval()
    max_batch: int = 1
    max_step: float = 0.1

    def __post_init__(self) -> None:
        _check(self)

    @property
    def bytes_per_element(self) -> int:
        return 2 if self.model.dtype == "bfloat16" else 4

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
    def pages_per_user(self) -> int:
        """Pages that a user with the longest history occupies."""
        return -(-self.model.max_history // self.tokens_per_page)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with anything that decides what a backend reports."""
        cost = dataclasses.replace(self.cost, machine="", date="", mean_error=0.0)
        content = dataclasses.asdict(dataclasses.replace(self, name="", description="", cost=cost))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def row_ms(self) -> float:
        """Time of one embedding row over the host link, without the transfer's latency."""
        return self.row_bytes / (self.link.bandwidth_gb_per_s * 1e6)


def _check(profile: Profile) -> None:
    """Raises InvalidInputError where the parts of a profile do not fit each other."""
    where = f"Profile '{profile.name}'"
    pool, population = profile.pool, profile.population
    for key in _POSITIVE:
        value: float = operator.attrgetter(key)(profile)
        if value <= 0:
            raise InvalidInputError(f"{where}: {key} must be above 0, not {value!r}.")
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
    if not 0.4 <= population.item_zipf <= 1.4:
        raise InvalidInputError(f"{where}: population.item_zipf {population.item_zipf} must lie in .4 to 1.4.")


def names() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load(name_or_path: str | pathlib.Path) -> Profile:
    """Opens a shipped profile by name, or any profile by the path of its YAML file.

    Raises:
        UnknownNameError: no such profile, or a key that a profile does not have.
        InvalidInputError: the file is not YAML, or a value is of another type or does not fit the others.
    """
    path = pathlib.Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = PROFILES / f"{name_or_path}.yaml"
        if not path.exists():
            raise UnknownNameError("profile", str(name_or_path), names())
    profile: Profile = read(Profile, path)
    return profile


def read(kind: Any, path: pathlib.Path) -> Any:
    """Makes the dataclass ``kind`` of a YAML file.

    Raises:
        UnknownNameError: a key that ``kind`` does not have.
        InvalidInputError: the file is not YAML, or a value is of another type or does not fit the others.
    """
    what = kind.__name__
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"{what} {path} cannot be read: {error.strerror}; give a file's path.") from error
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{what} {path} is not YAML: {' '.join(str(error).split())}.") from error
    return _build(kind, data, str(path), "")


def save(profile: Profile, path: pathlib.Path) -> None:
    """Writes ``profile`` as YAML."""
    path.write_text(yaml.safe_dump(dataclasses.asdict(profile), sort_keys=False, width=100), encoding="utf-8")


def _build(kind: Any, data: object, where: str, key: str) -> Any:
    """Makes the dataclass ``kind`` of a mapping, key by key, with errors that name file and key."""
    label = key or "the file"
    if not isinstance(data, dict):
        raise InvalidInputError(f"{where}: {label} must be a mapping, not {type(data).__name__}.")
    hints = typing.get_type_hints(kind)
    for name in data:
        if name not in hints:
            known = [f"{key}.{hint}".lstrip(".") for hint in hints]
            raise UnknownNameError(f"key in {where}", f"{key}.{name}".lstrip("."), known)
    values = {}
    for field in dataclasses.fields(kind):
        full = f"{key}.{field.name}".lstrip(".")
        if field.name in data:
            values[field.name] = _value(hints[field.name], data[field.name], where, full)
        elif field.default is dataclasses.MISSING:
            raise InvalidInputError(f"{where}: {full} is missing.")
    return kind(**values)


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, key)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise InvalidInputError(f"{where}: {key} must be a list, not {value!r}.")
        return tuple(_value(typing.get_args(hint)[0], entry, where, f"{key}[{k}]") for k, entry in enumerate(value))
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise UnknownNameError(f"value of {key} in {where}", str(value), map(str, typing.get_args(hint)))
        return value
    if isinstance(hint, types.UnionType):
        raise AssertionError(f"profile fields have one type: {key}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or isinstance(value, bool) is not (hint is bool):
        raise InvalidInputError(f"{where}: {key} must be {hint.__name__}, not {value!r}.")
    if key == _SIGNED:
        return value
    if hint is float and not math.isfinite(value):
        raise InvalidInputError(f"{where}: {key} must be finite, not {value!r}.")
    if hint in (int, float) and value < 0:
        raise InvalidInputError(f"{where}: {key} must not be negative, not {value!r}.")
    return value
