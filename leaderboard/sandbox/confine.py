"""Taking a process's rights away, for good: limits, no new privileges, Landlock without a path, few system calls.

No root and no daemon are needed. Whatever is to be imported or opened must be so before; nothing can be undone.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pathlib
import resource
import signal

from helm_gym.errors import IncompatibleError

_CREATE_RULESET, _RESTRICT_SELF, _VERSION = 444, 446, 1  # the same numbers on all machines
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_NO_NEW_PRIVS = 1, 4, 38  # of prctl
# ABI of the kernel -> rights on files it knows, all of which are handled and so refused
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET_RIGHTS = 0b11  # bind and connect, from ABI 4 on
_SCOPES = 0b11  # abstract sockets and signals, from ABI 6 on
_THREAD = 0x100 | 0x10000  # of clone: the same memory, the same process
_ALLOWED = (
    *("read", "write", "pread64", "lseek", "close", "fstat", "poll", "ppoll"),
    *("brk", "munmap", "mremap", "madvise", "futex", "membarrier", "set_robust_list", "rseq", "sched_yield"),
    *("clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "getrandom", "getrusage"),
    *("getpid", "gettid", "sched_getaffinity", "sysinfo", "getcpu", "times", "uname"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall", "exit", "exit_group"),
)  # none that opens, connects, starts or signals anything; mmap, mprotect and clone are added with conditions


class _Ruleset(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("fs", "net", "scoped"))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        raise IncompatibleError(f"This kernel refuses {what}: {os.strerror(ctypes.get_errno())}.")
    return result


def landlock_abi() -> int:
    """The version of Landlock that this kernel has; 0 where it has none."""
    return max(0, _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION))


def missing() -> list[str]:
    """What this machine lacks of a sandbox, one phrase each; nothing where it has all."""
    lacks = []
    if landlock_abi() == 0:
        lacks.append("Landlock (a kernel from 5.13 on with lsm=landlock)")
    try:
        import pyseccomp

        if pyseccomp.get_api() < 2:
            lacks.append("seccomp filters (a kernel with CONFIG_SECCOMP_FILTER)")
    except (ImportError, OSError, RuntimeError, NotImplementedError):
        lacks.append("pyseccomp with the system's library libseccomp2")
    return lacks


def limit(memory_bytes: int, cpu_s: int) -> None:
    """Bounds what this process may take from now on: address space beyond what it has, CPU time, files, cores."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    bounds = {
        resource.RLIMIT_AS: pages * mmap.PAGESIZE + memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        # One more than are open, which is the folder that is listed here: Landlock's ruleset needs it for a moment.
        resource.RLIMIT_NOFILE: max(map(int, os.listdir("/proc/self/fd"))) + 1,
    }
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))


def end_with_parent(parent: int) -> None:
    """Has the kernel kill this process once ``parent``, which started it, has ended."""
    _check(_libc().prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "a signal at the parent's end")
    if os.getppid() != parent:
        raise SystemExit(1)


def confine() -> None:
    """Leaves this process what computing takes, and the files that it has open.

    Raises:
        IncompatibleError: the kernel lacks a part, or another thread runs, which would keep its rights.
    """
    lacks = missing()
    if lacks:
        raise IncompatibleError(f"No sandbox is possible here; what is missing: {'; '.join(lacks)}.")
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise IncompatibleError(f"A sandbox needs a process of one thread; this one has {threads}.")
    libc = _libc()
    _check(libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0), "to hide this process's memory")
    _check(libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "to give up new privileges")
    _forbid_files(libc)
    _filter_calls()


def _forbid_files(libc: ctypes.CDLL) -> None:
    abi = landlock_abi()
    rules = _Ruleset((1 << _FILE_RIGHTS[min(abi, 5)]) - 1, _NET_RIGHTS if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _check(libc.syscall(_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), 0), "a Landlock ruleset")
    _check(libc.syscall(_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _filter_calls() -> None:
    import pyseccomp as seccomp

    calls = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    for name in _ALLOWED:
        calls.add_rule(seccomp.ALLOW, name)
    for name in ("mmap", "mprotect"):  # memory, but none that can be run as code
        calls.add_rule(seccomp.ALLOW, name, seccomp.Arg(2, seccomp.MASKED_EQ, mmap.PROT_EXEC, 0))
    calls.add_rule(seccomp.ALLOW, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _THREAD, _THREAD))
    # A filter cannot look into what clone3 is given; without it, the C library uses clone for a thread.
    calls.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    calls.load()
