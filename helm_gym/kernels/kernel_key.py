"""What machine code follows from: a key made of a kernel, of all that it calls, and of every value that it freezes.

numba's own cache looks at the file of the function that it stores, and at no other. So an edit to a function that this
one calls, or to a constant from another module, would bring the old machine code back. Here the key is made of what the
compiler reads: bytecode, constants, compiler flags and the values of globals, followed through kernels and modules to
their ends, whichever package defines them. Comments, docstrings and what no kernel reads change nothing.

What stands outside: functions registered with ``numba.extending.overload``, whose bodies no kernel names.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import hashlib
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core.dispatcher import Dispatcher

_NO_MATTER = {"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS"}  # of numba's settings; any other may change what is compiled
_PLAIN = (type(None), type(...), bool, int, float, complex, str, bytes)


class NotKeyedError(TypeError):
    """A kernel reads a value that no key can be made of, so that its machine code cannot be kept."""


def key_of(kernel: Any, signature: Any, machine: tuple[Any, ...]) -> str:
    """The key of a kernel's machine code, 32 hexadecimal digits.

    Args:
        kernel: numba's dispatcher.
        signature: numba's types of the arguments.
        machine: numba's description of processor and code generation.

    Raises:
        NotKeyedError: see there.
    """
    types_ = tuple(getattr(signature, "args", signature))
    text = [*map(repr, (_toolchain(), machine, types_)), *_layouts(types_)]
    text += [_read(function).digest for function in _reachable(kernel)]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:32]


def _is_library(module: str) -> bool:
    """Whether what a module defines is known by its name and by the toolchain's versions."""
    package = module.partition(".")[0]
    return package in ("numpy", "numba") or package in sys.stdlib_module_names


@functools.cache
def _toolchain() -> tuple[Any, ...]:
    settings = sorted((k, v) for k, v in os.environ.items() if k.startswith("NUMBA_") and k not in _NO_MATTER)
    return sys.implementation.cache_tag, numba.__version__, llvmlite.__version__, np.__version__, settings


def _layouts(types_: tuple[Any, ...]) -> Iterator[str]:
    """The order of the fields of the named tuples among the arguments, to any depth: a kernel reads them by place."""
    for type_ in types_:
        named = getattr(type_, "instance_class", None)
        if named is not None:
            yield repr(_Reader(type_.name).tell(named))
        inner = getattr(type_, "types", None) or (getattr(type_, "dtype", None), getattr(type_, "type", None))
        yield from _layouts(tuple(part for part in inner if isinstance(part, numba.types.Type)))


def _reachable(kernel: Any) -> list[Any]:
    """The kernel and what it calls, directly or not, each once, in an order that follows from them alone."""
    found: dict[int, Any] = {}
    pending = [kernel]
    while pending:
        function = pending.pop()
        if id(function) not in found:
            found[id(function)] = function
            pending += _read(function).calls
    return list(found.values())


@functools.cache
def _read(function: Any) -> _Reader:
    """Reads a kernel, or a plain function that kernels call."""
    plain = getattr(function, "py_func", function)
    reader = _Reader(f"{plain.__module__}.{plain.__qualname__}")
    options = getattr(function, "targetoptions", {})
    flags = sorted((name, sorted(v) if isinstance(v, set) else v) for name, v in options.items())
    cells = zip(plain.__code__.co_freevars, (cell.cell_contents for cell in plain.__closure__ or ()), strict=True)
    scope = {**vars(builtins), **plain.__globals__, **dict(cells)}
    text = (reader.where, flags, reader.tell(plain.__defaults__), reader.tell_code(plain.__code__, scope))
    reader.digest = hashlib.sha256(repr(text).encode()).hexdigest()
    return reader


class _Reader:
    """Tells what one function consists of, in words that are equal where its machine code would be.

    Attributes:
        calls: the functions that it names; each is read by itself.
        digest: of its own part.
    """

    digest = ""

    def __init__(self, where: str):
        self.where = where
        self.calls: list[Any] = []
        self._names: set[str] = set()  # among them the attributes that it reads of modules

    def tell_code(self, code: types.CodeType, scope: dict[str, Any]) -> object:
        """Bytecode, the constants that it loads (a docstring is none of them), and the globals that it reads."""
        self._names.update(code.co_names)
        instructions = list(dis.get_instructions(code))
        constants = [
            self.tell_code(i.argval, scope) if isinstance(i.argval, types.CodeType) else self.tell(i.argval)
            for i in instructions
            if i.opcode in dis.hasconst
        ]
        read = {i.argval for i in instructions if i.opname in ("LOAD_GLOBAL", "LOAD_DEREF")} & scope.keys()
        values = [(name, self.tell(scope[name])) for name in sorted(read)]
        return code.co_code, code.co_exceptiontable, code.co_flags, code.co_names, code.co_varnames, constants, values

    def tell(self, value: Any) -> object:
        """A value that the compiler would freeze; raises NotKeyedError for what it could not."""
        if isinstance(value, _PLAIN):
            return type(value).__name__, repr(value)
        if isinstance(value, enum.Enum):
            return type(value).__qualname__, value.name, self.tell(value.value)
        if isinstance(value, tuple):
            return type(value).__qualname__, getattr(value, "_fields", ()), [self.tell(item) for item in value]
        if isinstance(value, frozenset):
            return "frozenset", sorted(repr(self.tell(item)) for item in value)
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            return value.dtype.descr, value.shape, np.asarray(value).flags.f_contiguous, value.tobytes()
        if isinstance(value, types.ModuleType):
            return self._tell_module(value)
        if isinstance(value, type):
            return self._tell_class(value)
        if callable(value):
            return self._tell_function(value)
        raise NotKeyedError(f"{self.where} reads a value of type {type(value).__name__}")

    def _tell_function(self, function: Any) -> object:
        where = getattr(function, "__module__", None) or type(function).__module__
        name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or repr(function)
        if isinstance(function, Dispatcher) or (isinstance(function, types.FunctionType) and not _is_library(where)):
            self.calls.append(function)
        elif not _is_library(where):
            raise NotKeyedError(f"{self.where} calls a {type(function).__name__}")
        return where, name

    def _tell_module(self, module: types.ModuleType) -> object:
        if _is_library(module.__name__):
            return module.__name__
        names = sorted(self._names & vars(module).keys())
        return module.__name__, [(name, self.tell(getattr(module, name))) for name in names]

    def _tell_class(self, kind: Any) -> object:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if _is_library(kind.__module__):
            return name
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return name, kind._fields, sorted((n, self.tell(v)) for n, v in kind._field_defaults.items())
        if issubclass(kind, enum.Enum):
            return name, [self.tell(member) for member in kind]
        raise NotKeyedError(f"{self.where} reads class {name}")
