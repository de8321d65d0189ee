"""Machine code is kept under all that it follows from, read where nobody else could write, and made anew otherwise."""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import importlib
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from unittest import mock

import numba
import pytest
from numba.core.bytecode import ByteCode, FunctionIdentity
from numba.core.dispatcher import Dispatcher

from helm_gym.kernels import kernel_cache, kernel_key
from helm_gym.kernels.kernel_cache import KernelCache

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("helm_gym", "real_backend", "surrogate_backend", "agents", "baselines", "leaderboard")


# What a key is made of


@functools.cache
def shipped() -> list[Dispatcher]:
    """Every kernel of the tree, found by looking at all modules that name numba's decorator or the project's own."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "kernel" in path.read_text() or "njit" in path.read_text():
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                module = importlib.import_module(name)
                found |= {id(value): value for value in vars(module).values() if isinstance(value, Dispatcher)}
    return list(found.values())


def test_all_compiled_code_goes_through_the_one_decorator():
    """Another one would be kept, if at all, under a key that does not see what it calls."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            named = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            used = named & {"njit", "jit", "vectorize", "guvectorize", "cfunc", "jitclass"}
            assert not used or path == ROOT / "helm_gym/kernels/jit.py", f"{path} compiles by {used}"
    assert len(shipped()) > 150
    assert all(isinstance(k._cache, KernelCache) for k in shipped())


def test_every_kernel_can_be_kept_and_has_a_key_of_its_own():
    keys = {kernel_key.key_of(k, (), ()) for k in shipped()}
    assert len(keys) == len(shipped())


def own_part(k: Dispatcher) -> tuple[str, list[object]]:
    reader = kernel_key._read.__wrapped__(k)
    return reader.digest, reader.calls


def test_whatever_a_kernel_reads_is_part_of_its_key():
    """By numba's own account of the globals that it freezes, from whichever module: another value is another key."""
    tried = 0
    for k in shipped():
        before, plain = own_part(k), k.py_func
        for name, value in ByteCode(FunctionIdentity.from_function(plain)).get_used_globals().items():
            if isinstance(value, types.ModuleType) and not kernel_key._is_library(value.__name__):
                names = {i.argval for i in dis.get_instructions(plain) if i.opname in ("LOAD_ATTR", "LOAD_METHOD")}
                for attribute in names & vars(value).keys():
                    with mock.patch.object(value, attribute, 12345.5):
                        assert own_part(k) != before, f"{plain.__qualname__}: {value.__name__}.{attribute}"
                    tried += 1
            else:
                with mock.patch.dict(plain.__globals__, {name: 12345.5}):
                    assert own_part(k) != before, f"{plain.__module__}.{plain.__qualname__}: {name}"
                tried += 1
    assert tried > 1000


SOURCE = """\
from typing import NamedTuple
import numpy as np
from helm_gym.kernels.jit import kernel

class Pair(NamedTuple):
    first: float
    second: float

FACTOR, TABLE, PAIR = 2.0, np.arange(4.0), Pair(1.0, 2.0)

def make(offset):
    @kernel
    def add(x):
        return x + offset
    return add

add = make(1.0)

@kernel
def inner(x):
    return x * FACTOR + TABLE[1]

@kernel
def outer(x, pair):
    '''What it is.'''
    if x > 100.0:
        raise ValueError("too large")
    return add(inner(x)) + PAIR.second + pair.first + 3.0  # a comment
"""


def module(*changes: tuple[str, str]) -> types.ModuleType:
    """SOURCE with changes, as another process would meet it: its kernels are not compiled yet."""
    text = SOURCE
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    found = types.ModuleType("some_module")
    sys.modules["some_module"] = found  # where numba looks for what a kernel that it reads back belongs to
    exec(compile(text, "some_module.py", "exec"), vars(found))
    return found


def outer_key(*changes: tuple[str, str]) -> str:
    found = module(*changes)
    return kernel_key.key_of(found.outer, (numba.float64, numba.typeof(found.Pair(1.0, 2.0))), ())


@pytest.mark.parametrize(
    "change",
    [
        ("PAIR = 2.0,", "PAIR = 2,"),
        ("np.arange(4.0)", "np.arange(4.0) + 1e-9"),
        ("np.arange(4.0)", "np.arange(4, dtype=np.float32)"),
        ("Pair(1.0, 2.0)", "Pair(1.0, 2.5)"),
        ("    first: float\n    second: float", "    second: float\n    first: float"),
        ("make(1.0)", "make(1.5)"),
        ("x * FACTOR", "x + FACTOR"),
        ("+ 3.0  #", "+ 3.5  #"),
        ("too large", "very large"),
        ("@kernel\ndef inner", "@lambda f: kernel(f, fastmath=True)\ndef inner"),
        ("def outer(x, pair):", "def outer(x, pair, other=1.0):"),
    ],
)
def test_an_edit_to_anything_that_is_compiled_makes_another_key(change):
    assert outer_key(change) != outer_key()


@pytest.mark.parametrize(
    "change",
    [
        ("a comment", "another one"),
        ("What it is.", "Other words."),
        ("first: float", "first: int"),
        ("class Pair", "UNUSED = 3.0\n\nclass Pair"),
    ],
)
def test_an_edit_to_nothing_that_is_compiled_keeps_the_key(change):
    assert outer_key(change) == outer_key()


def test_types_of_arguments_processor_and_numbas_settings_are_part_of_the_key(monkeypatch):
    found, pair = module(), numba.typeof(module().Pair(1.0, 2.0))
    keys = {kernel_key.key_of(found.outer, (t, pair), m) for t in (numba.float32, numba.float64) for m in ("a", "b")}
    kernel_key._toolchain.cache_clear()
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    keys.add(kernel_key.key_of(found.outer, (numba.float64, pair), "a"))
    kernel_key._toolchain.cache_clear()
    assert len(keys) == 5


def test_what_no_key_can_be_made_of_is_named_and_not_kept(cache, capfd):
    found = module(("FACTOR, TABLE, PAIR = 2.0", "FACTOR, TABLE, PAIR = [2.0]"), ("x * FACTOR", "x * FACTOR[0]"))
    with pytest.raises(numba.TypingError):  # nor does numba take it; the sentence comes first
        found.inner(1.0)
    assert "some_module.inner reads a value of type list" in capfd.readouterr().err
    assert not list(cache.iterdir())


# Where machine code is kept


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Iterator[pathlib.Path]:
    """A cache of the test's own, and no other beside it."""
    monkeypatch.setenv("HELM_GYM_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(kernel_cache.QUIET, raising=False)
    forget()
    kernel_cache._folders()
    yield tmp_path / "own" / "kernels"
    forget()


def forget() -> None:
    """What this process knows of folders and has said, as if it were another."""
    for memo in (kernel_cache._folders, kernel_cache._prune, kernel_cache.say):
        memo.cache_clear()


def run(*changes: tuple[str, str]) -> tuple[float, set[str]]:
    """What the small kernels give, and which of them were compiled for that."""
    forget()
    found, before = module(*changes), len(kernel_cache.compiled)
    result = found.outer(1.0, found.Pair(1.0, 2.0))
    return result, {name.removeprefix("some_module.") for name in kernel_cache.compiled[before:]}


ALL = {"outer", "make.<locals>.add", "inner"}


def test_the_next_process_compiles_nothing_and_an_edit_what_depends_on_it(cache):
    assert run() == (10.0, ALL)
    assert run() == (10.0, set())
    assert run(("a comment", "another")) == (10.0, set())
    assert run(("PAIR = 2.0,", "PAIR = 4.0,")) == (12.0, {"outer", "inner"})
    assert run(("first: float\n    second: float", "second: float\n    first: float"))[0] == 10.0
    assert run() == (10.0, set())
    assert len(list(cache.iterdir())) == 6


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "a folder", "a changed byte"])
def test_a_damaged_file_is_made_anew(cache, damage):
    run()
    for path in cache.iterdir():
        whole = path.read_bytes()
        path.unlink()
        if damage == "a folder":
            path.mkdir()
            continue
        parts = {"empty": b"", "truncated": whole[:-100], "garbage": os.urandom(5000)}
        path.write_bytes(parts.get(damage, whole[:400] + bytes([whole[400] ^ 1]) + whole[401:]))
    assert run() == (10.0, ALL)
    assert damage == "a folder" or run() == (10.0, set())


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: pathlib.Path):
        self.trace = trace

    def __reduce__(self):
        return pathlib.Path.touch, (self.trace,)


@pytest.mark.parametrize("whose", ["another user's", "writable by others"])
def test_a_file_that_another_user_may_have_written_is_not_opened(cache, tmp_path, whose):
    run()
    payload = pickle.dumps(Bomb(tmp_path / "trace"))
    for path in cache.iterdir():
        path.write_bytes(hashlib.sha256(payload).digest() + payload)
        path.chmod(0o666 if whose == "writable by others" else 0o600)
        if whose == "another user's":
            if os.geteuid():
                pytest.skip("only root can give a file away")
            os.chown(path, 54321, 54321)
    assert run() == (10.0, ALL)
    assert not (tmp_path / "trace").exists()


def test_a_folder_that_others_can_write_is_made_ones_own(cache):
    cache.chmod(0o777)
    run()
    assert cache.stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_left_alone_and_named(cache, tmp_path, capfd):
    os.chown(cache, 54321, 54321)
    assert run()[0] == 10.0
    assert not list(cache.iterdir())
    told = capfd.readouterr().err
    assert f"cannot be kept in {cache} (others can write there): they are in {tmp_path}/helm-gym-kernels-" in told
    assert "Set HELM_GYM_CACHE" in told and told.count("\n") == 2
    assert run() == (10.0, set())


def test_without_any_folder_kernels_are_compiled_and_it_is_said(cache, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(kernel_cache, "_candidates", lambda: map(pathlib.Path, ("/dev/null/a", "/dev/null/b")))
    assert run() == run() == (10.0, ALL)
    told = capfd.readouterr().err
    assert "cannot be kept in /dev/null/a (Not a directory) nor in /dev/null/b (Not a directory)" in told
    assert "each process compiles them anew. Set HELM_GYM_CACHE to a folder of your own." in told


def test_a_disk_that_is_full_is_no_traceback(cache, monkeypatch, capfd):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernel_cache, "_write", full)
    assert run() == (10.0, ALL)
    assert capfd.readouterr().err.count("No space left on device") == 1


def test_where_there_is_no_home_a_temporary_folder_of_ones_own_is_taken(cache, tmp_path, monkeypatch, capfd):
    """A user without a passwd entry: neither HOME nor the system knows where."""
    monkeypatch.delenv("HELM_GYM_CACHE")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", mock.Mock(side_effect=KeyError))
    assert run() == (10.0, ALL) and run() == (10.0, set())
    assert "this user has no home): they are in" in capfd.readouterr().err
    folder = tmp_path / f"helm-gym-kernels-{os.geteuid()}"
    assert folder.stat().st_mode & 0o022 == 0 and len(list(folder.iterdir())) == 3
    assert not pathlib.Path("~").exists()


def test_the_folder_is_the_one_that_was_asked_for(monkeypatch):
    for name in ("HELM_GYM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    first = [next(kernel_cache._candidates())]
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    first.append(next(kernel_cache._candidates()))
    monkeypatch.setenv("HELM_GYM_CACHE", "/own")
    first.append(next(kernel_cache._candidates()))
    folders = ("/home/somebody/.cache/helm-gym/kernels", "/var/cache/helm-gym/kernels", "/own/kernels")
    assert first == [pathlib.Path(folder) for folder in folders]


def test_a_system_without_a_temporary_folder_leaves_the_one_that_was_asked_for(monkeypatch):
    monkeypatch.setenv("HELM_GYM_CACHE", "/own")
    monkeypatch.setattr(kernel_cache, "tempfile", mock.Mock(gettempdir=mock.Mock(side_effect=FileNotFoundError)))
    assert list(kernel_cache._candidates()) == [pathlib.Path("/own/kernels")]


def test_what_was_used_longest_ago_goes_first(cache, monkeypatch):
    run()
    size = sum(path.stat().st_size for path in cache.iterdir())
    for age, name in ((3, "old"), (2, "older-but-used"), (1, "new")):
        (cache / name).write_bytes(b"x" * size)
        os.utime(cache / name, (1e9 - age, 1e9 - age))
    os.utime(cache / "older-but-used", (1e9, 1e9))
    monkeypatch.setattr(kernel_cache, "LIMIT", 3 * size)
    run(("PAIR = 2.0,", "PAIR = 4.0,"))
    assert {path.name for path in cache.iterdir()} & {"old", "older-but-used", "new"} == {"older-but-used"}
    assert run() == (10.0, set())


def test_the_first_compilation_is_said_once_and_only_where_something_is_compiled(cache, monkeypatch, capfd):
    run()
    told = capfd.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and "Compiling kernels for this machine" in told.err
    run()
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv(kernel_cache.QUIET, "1")
    run(("PAIR = 2.0,", "PAIR = 4.0,"))
    assert capfd.readouterr() == ("", "")


# Other processes

CODE = """
import sys
from helm_gym.kernels import kernel_cache
import {module}
print({call}, len(kernel_cache.compiled))
"""


def python(folder: pathlib.Path, cache: pathlib.Path, module: str, call: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "HELM_GYM_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"NUMBA_CACHE_DIR": str(cache / "numbas")}
    code = CODE.format(module=module, call=call)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip(), err


def test_another_process_sees_an_edit_of_the_reward(tmp_path):
    """The case that was found: the old reward came out, because the kernel froze a constant of another module."""
    shutil.copytree(ROOT / "helm_gym", tmp_path / "helm_gym", ignore=shutil.ignore_patterns("__pycache__"))
    call = "(kernels := helm_gym.kernels.control_interval, values := kernels.np.arange(100.0).reshape(1, 1, -1), "
    call += "r := values[0, 0, :1].copy(), each := values[0, 0, 1:5].copy(), "
    call += "kernels.compute_cost(values, each, r, values[0, :, :4].T.copy()), r[0])[5]"
    first, _ = ended(python(tmp_path, tmp_path / "cache", "helm_gym.kernels.control_interval", call))
    again, _ = ended(python(tmp_path, tmp_path / "cache", "helm_gym.kernels.control_interval", call))
    reward = tmp_path / "helm_gym" / "reward.py"
    reward.write_text(
        reward.read_text().replace('"interval_violations", "moved_pages")', '"moved_pages", "interval_violations")')
    )
    edited, _ = ended(python(tmp_path, tmp_path / "cache", "helm_gym.kernels.control_interval", call))
    assert first.split()[1] == "1" and again == f"{first.split()[0]} 0"
    assert edited.split()[1] == "1" and edited.split()[0] != first.split()[0]
    assert not list(tmp_path.rglob("*.nbi"))


def test_two_processes_compile_at_once_and_a_third_nothing(tmp_path):
    (tmp_path / "some_module.py").write_text(SOURCE)
    call = "some_module.outer(1.0, some_module.Pair(1.0, 2.0))"
    both = [python(tmp_path, tmp_path / "cache", "some_module", call) for _ in range(2)]
    assert all(ended(process)[0].startswith("10.0 ") for process in both)
    assert ended(python(tmp_path, tmp_path / "cache", "some_module", call)) == ("10.0 0", "")
    assert len(list((tmp_path / "cache" / "kernels").iterdir())) == 3


AS_NOBODY = """
import os, sys
import numba
numba.njit(lambda x: x + 1)(1.0)  # what numba loads late: this user may not be allowed to read where Python lies
from helm_gym.kernels import kernel_cache
import some_module
os.setgroups([]), os.setgid(54321), os.setuid(54321)
print(some_module.outer(1.0, some_module.Pair(1.0, 2.0)), len(kernel_cache.compiled))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user whom the system does not know")
def test_a_user_whom_the_system_does_not_know(tmp_path):
    """No HOME, no passwd entry, no right to write where root does: a container's usual case."""
    (tmp_path / "some_module.py").write_text(SOURCE)
    shared = pathlib.Path(tempfile.mkdtemp())
    try:
        for folder, mode in (
            (shared, 0o755),
            (shared / "tmp", 0o1777),
            (shared / "other", 0o1777),
            (shared / "root", 0o755),
        ):
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)
        environment = {
            k: v
            for k, v in os.environ.items()
            if k not in ("HOME", "XDG_CACHE_HOME", "HELM_GYM_CACHE", kernel_cache.QUIET)
        }
        environment |= {"TMPDIR": str(shared / "tmp"), "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

        def run(**more: str) -> tuple[str, str]:
            command = [sys.executable, "-c", AS_NOBODY]
            done = subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip(), done.stderr

        out, told = run()
        assert out == "10.0 3"
        assert f"(this user has no home): they are in {shared}/tmp/helm-gym-kernels-54321. Set HELM_GYM_CACHE" in told
        assert run() == ("10.0 0", "")
        out, told = run(HELM_GYM_CACHE=str(shared / "root"), TMPDIR=str(shared / "other"))
        assert out == "10.0 3" and f"cannot be kept in {shared}/root/kernels (Permission denied): they are in" in told
        ended(python(tmp_path, shared / "root", "some_module", "some_module.outer(1.0, some_module.Pair(1.0, 2.0))"))
        assert run(HELM_GYM_CACHE=str(shared / "root"))[0] == "10.0 0"  # what root has compiled may be read
    finally:
        shutil.rmtree(shared)
