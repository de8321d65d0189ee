"""Profiles: what is shipped loads, what is wrong is refused with one sentence that names file and key."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import typing

import pytest
import yaml

from helm_gym import profile as profiles
from helm_gym.cluster.topology import Cluster
from helm_gym.errors import HelmError, InvalidInputError, UnknownNameError
from helm_gym.ranges import Name, ranges_of


@pytest.fixture
def data() -> dict:
    loaded: dict = yaml.safe_load((profiles.PROFILES / "cpu-small.yaml").read_text())
    return loaded


def load(tmp_path, data: object) -> profiles.Profile:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    return profiles.load(path)


@pytest.mark.parametrize("name", profiles.names())
def test_shipped_profiles_load_and_survive_a_round_trip(name, tmp_path):
    profile = profiles.load(name)
    assert profile.name == name
    profiles.save(profile, tmp_path / "copy.yaml")
    again = profiles.load(tmp_path / "copy.yaml")
    assert dataclasses.replace(again, cost=profile.cost) == profile
    assert again.cost.per_pair_ms == profile.cost.per_pair_ms
    fitted = dataclasses.replace(profile, cost=dataclasses.replace(profile.cost, mean_error=-0.01))
    profiles.save(fitted, tmp_path / "fitted.yaml")
    assert profiles.load(tmp_path / "fitted.yaml") == fitted


def test_pages_of_the_small_profile_are_as_designed():
    profile = profiles.load("cpu-small")
    assert (profile.tokens_per_page, profile.rows_per_page) == (16, 64)
    assert (profile.row_bytes, profile.kv_bytes_per_token) == (256, 1024)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("pool", "pagez"), 3, "did you mean 'pool.pages'"),
        (("pool", "pages"), "many", "pool.pages must be int"),
        (("pool", "pages"), 1.5, "pool.pages must be int"),
        (("pool", "pages"), 100, "cannot hold one user"),
        (("pool", "page_bytes"), 128, "cannot hold one token"),
        (("pool", "max_alpha"), 1.2, "max_alpha"),
        (("link", "bandwidth_gb_per_s"), float("nan"), "must be above 0 and at most 1,000,000, not nan"),
        (("slo_ms",), float("inf"), "must be above 0 and at most 10,000,000, not inf"),
        (("link", "modelled"), 1, "must be bool"),
        (("link", "bandwidth_gb_per_s"), 0, "must be above 0"),
        (("model", "layers"), 0, "model.layers must be 1 to 128, not 0"),
        (("interval",), {"requests": 0, "window": 0}, "interval.requests must be 1 to 10,000, not 0"),
        (("population", "hot_share"), 2, "population.hot_share must be 0 to 1, not 2"),
        (("population", "turnover"), 5.0, "population.turnover must be 0 to 1, not 5"),
        (("population", "candidates"), 65, "more than the model's maximum of 64"),
        (("pool", "page_moves_per_interval"), 0, "page_moves_per_interval must be 1 to 16,777,216, not 0"),
        (("pool", "pages"), 10**30, "pool.pages must be 2 to 16,777,216, not 1000"),
        (("pool",), {"pages": 2**24, "page_bytes": 2**20}, "can be numbered"),
        (("cost",), dict.fromkeys(("base_ms", "per_token_ms", "per_pair_ms", "per_context_ms"), 0), "all costs are 0"),
        (("slo_ms",), "1e-5", "in YAML a number has a point before its exponent: 1e-05"),
        (("name",), "../../x", "must be a name: 1 to 64 printable characters, without slashes"),
        (("name",), "n" * 65, "must be a name"),
        (("name",), "red \x1b[31m", r"\\x1b"),
        (("name",), "", "must be a name"),
        (("description",), "d" * 501, "at most 500 characters"),
        (("population", "item_zipf"), 0.2, "item_zipf"),
        (("model", "dtype"), "float31", "did you mean 'float32'"),
        (("population", "mean_history"), 9000, "longer than the model's maximum"),
        (("population", "users"), -1, "population.users must be 2 to 134,217,728, not -1"),
        (("interval",), {"requests": 50, "window": 120}, "multiple"),
        (("model",), [1], "must be a mapping"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, data, path, value, sentence):
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(HelmError, match=sentence) as caught:
        load(tmp_path, data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 500


FINGERPRINTS = {  # what shipped policies were made for; all took the books of 2026-11-29
    "a100-40g": "cf74a914d6c32c5f",
    "a100-40g-kuairand": "16960608bf1bb943",
    "a100-80g": "b0f5c6acc32ff1dd",
    "cpu-small": "ea700d5213b787ef",
    "h200": "c0dcc16b63351a3d",
}


def test_fingerprints_of_shipped_profiles_stay():
    assert {name: profiles.load(name).fingerprint for name in profiles.names()} == FINGERPRINTS


@pytest.mark.parametrize("kind", [profiles.Profile, Cluster])
def test_every_number_and_text_says_its_range_where_it_is_declared(kind):
    bare, pending = [], [kind]
    while pending:
        of = pending.pop()
        for name, (hint, allowed) in ranges_of(of).items():
            inner = typing.get_args(hint)[:1] if typing.get_origin(hint) is tuple else (hint,)
            pending += [part for part in inner if dataclasses.is_dataclass(part)]
            if hint in (int, float, str) and allowed is None:
                bare.append(f"{of.__name__}.{name}")
    assert not bare


def fields(kind, key=""):
    """Key, what is allowed, and default of every field, as docs/profiles.md lists them."""
    for field in dataclasses.fields(kind):
        hint, allowed = ranges_of(kind)[field.name]
        full = f"{key}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(hint):
            yield from fields(hint, full)
            continue
        chosen = ", ".join(typing.get_args(hint)) if typing.get_origin(hint) is typing.Literal else "true, false"
        said = chosen if allowed is None else "a name" if isinstance(allowed, Name) else str(allowed)
        default = "" if field.default is dataclasses.MISSING else str(field.default)
        yield f"`{full}`", said + ", whole" * (hint is int), default.lower() if hint is bool else default


def test_the_documentation_lists_every_field_with_its_range():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "profiles.md").read_text(encoding="utf-8")
    rows = [
        tuple(cell.strip() for cell in line.split("|")[1:4]) for line in text.splitlines() if line.startswith("| `")
    ]
    assert [row for row in rows if ", " not in row[0]] == list(fields(profiles.Profile))


def _bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 10)]
    return "\n".join(lines)


DEEP = 100_000


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("name: caf\xe9".encode("latin-1"), r"no text in UTF-8 \(byte 9\)"),
        ("name: x".encode("utf-16"), "no text in UTF-8"),
        (_bomb(), r"has an alias \(\*a0\); write the value out"),
        ("x: &x [*x]", "has an alias"),
        ("[" * DEEP, "nested too deep"),
        ("{a: " * (DEEP // 2), "nested too deep"),
        ("? " * DEEP, "nested too deep"),
        ("name: a\nname: b", "has the key 'name' twice"),
        ("pool: {pages: 1, pages: 2}", "has the key 'pages' twice"),
        ("name: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("name: !!binary aGVsbG8=", "could not determine a constructor"),
        ("slo_ms: !!int many", "not YAML: invalid literal"),
        ("slo_ms: !!bool maybe", "not YAML"),
        ("name: 2026-13-45\nslo_ms: " + "9" * 10_000, "not YAML: Exceeds the limit"),
        ("name: " + "9" * 300_000, "larger than 256 KiB"),
        ("a" * 200_000 + ": 1", "not YAML"),
        ("a\0b", "not YAML"),
        ("? [a]\n: 1", "not YAML"),
        ("", "must be a mapping"),
        ("- " * 3, "must be a mapping"),
        ("---\na: 1\n---\nb: 1", "single document"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_hostile_file_ends_with_one_short_sentence(tmp_path, content, sentence):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(HelmError, match=sentence) as caught:
        profiles.load(path)
    assert len(str(caught.value)) <= 500 and "\n" not in str(caught.value)


def test_huge_values_are_not_written_out(tmp_path, data):
    for value in ("0x" + "f" * 9000, "[" + "[1, 2], " * 20_000 + "]", '"' + "x" * 100_000 + '"'):
        text = yaml.safe_dump(data).replace("pages: 2048", f"pages: {value}")
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(InvalidInputError, match=r"pool\.pages must be") as caught:
            profiles.load(tmp_path / "mine.yaml")
        assert len(str(caught.value)) <= 500


def test_a_date_may_stand_without_quotes(tmp_path, data):
    text = yaml.safe_dump(data).replace("'2026-11-29'", "2026-11-29")
    (tmp_path / "mine.yaml").write_text(text)
    assert "2026-11-29\n" in text and profiles.load(tmp_path / "mine.yaml").cost.date == "2026-11-29"


def test_only_files_are_read_and_only_so_far(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    for name, kind in (("pipe", "a pipe"), ("zero", "a device"), ("folder", "a folder")):
        with pytest.raises(InvalidInputError, match=f"no regular file but {kind}"):
            profiles.load(tmp_path / f"{name}.yaml")
    for path in ("a\0b.yaml", "x" * 5000 + ".yaml", str(tmp_path / "none.yaml")):
        with pytest.raises(InvalidInputError, match="cannot be read"):
            profiles.load(path)
    for name in ("../../x", "x" * 5000, "a\0b"):
        with pytest.raises(UnknownNameError, match=r"known: a100-40g, .*cpu-small, h200"):
            profiles.load(name)


def test_saving_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path, profile = tmp_path / "mine.yaml", profiles.load("cpu-small")
    profiles.save(profile, path)
    before = path.read_text()

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.replace", fail)
        with pytest.raises(InvalidInputError, match="cannot be written: No space left"):
            profiles.save(dataclasses.replace(profile, slo_ms=1.0), path)
    assert path.read_text() == before


def test_a_missing_key_a_missing_file_and_no_yaml(tmp_path, data):
    del data["link"]
    with pytest.raises(InvalidInputError, match="link is missing"):
        load(tmp_path, data)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        profiles.load(tmp_path / "absent.yaml")
    with pytest.raises(UnknownNameError, match="did you mean 'cpu-small'"):
        profiles.load("cpu-smal")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(InvalidInputError, match="not YAML"):
        profiles.load(tmp_path / "broken.yaml")
