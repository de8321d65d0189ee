"""Any command line ends within seconds: with status 0, or with 2 and one sentence, never with a traceback.

Arguments are drawn from what the commands declare, so that a new command or option is covered as it is: values that are
good for an option of that name where one is known, and else words and paths of all kinds; in between odd and hostile
ones. How many processes or threads there are to be stays small where it is valid. What then works honestly and for long
(demo, train, collect, bench, reproduce, an evaluation of many seeds) gets Ctrl-C (tests/fuzz/warm.py).
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helm_gym import registry
from helm_gym.cli.main import app
from helm_gym.paper import FIGURES
from helm_gym.training import trainable
from tests.fuzz.conftest import Run
from tests.fuzz.material import write_material

pytestmark = pytest.mark.long


def commands_of(group: Any, *words: str) -> Iterator[tuple[str, Any]]:
    """The commands of a group and of the groups in it, by what is written for them."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, *words, name)
        else:
            yield " ".join((*words, name)), command


COMMANDS = dict(commands_of(typer.main.get_command(app)))
EXAMPLES = int(os.environ.get("HELM_GYM_FUZZ", "25"))  # of each command
FEW = ("workers", "threads", "nodes")  # parameters whose valid values start as many

with tempfile.TemporaryDirectory() as _folder:
    PATHS = write_material(pathlib.Path(_folder))

GOOD: dict[str, tuple[str, ...]] = {  # by a parameter's name
    "task": tuple(registry.listed("task")),
    "backend": ("modelled", "surrogate", "real"),
    "judge": ("modelled", "surrogate"),
    "design": ("train", "test"),
    "profile": ("cpu-small", "a100-40g-kuairand", "small.yaml"),  # larger ones take a GiB and seconds each
    "action": ("show", "import"),
    "policies": (
        *(entry.name for entry in registry.listed("policy").values() if not entry.argument),
        *("static:0.5", "oracle-late:2", "runs/ppo", "runs/pid", "policy.onnx", "pid+learned"),
    ),
    "agent": tuple(trainable.agents()),
    "figure": tuple(FIGURES),
    "checkpoint": ("cpu-small-v2", "cpu-small-clusters-v2"),
    "run": ("runs/ppo", "runs/pid", "runs/router"),
    "cluster": ("1", "2", "cluster.yaml"),
    "seeds": ("1", "0-1", "3,5", "7,"),
    "overrides": ("kp=0.1", "gamma=0.95", "hidden=8", "layers=base", "cluster=2"),
    "fixed": ("kp=0.1", "kd=0"),
    "only": ("surrogate", "decision", "routing_us"),
    "out": ("new", "new/policy.onnx", "new/mine.yaml", "runs/ppo", "runs/begun"),
    "html": ("new/report.html",),
    "trace": ("trace.csv", "trace.jsonl"),
    "scores": ("scores.json",),
    "storage": ("sqlite:///new.db", "new.journal"),
    "study": ("mine",),
}
ODD = (
    *("nan", "inf", "-inf", "1e300", "-1", "0", "99999999999999999999", "9" * 5000, "1e400", "0x10", "1_0", " 1"),
    *("½", "²", "٣", "static:nan", "static:1e300", "oracle-late:1e300", "oracle-late:-1", "static:", ":", "+", "pid+"),
    *("+joint", "static:0.5+static:0.5", "a+b+c", "0-", "-3", "9-3", "1,1", "0-99999999", ",", "1-2-3", "=", "a="),
    *("=b", "kp=", "kp==1", "kp=nan", "kp=1e999", "hidden=0", "hidden=-1", "hidden=1e12", "lanes=1e9", "lanes=0"),
    *("layers=,", "examples=/dev/zero", "rate=2", "n_steps=7", "bins=1e9", "columns=x", "controller=runs/half"),
    *("windows=1e9", "batch_size=99999999999999999999", "", " ", "\t", "..", ".", "~", "*", "--", "-", "--help"),
    *("\x1b[31mred", "\u202eabc", "[/red]", "[bold]x", "\udcff", "a\nb", "x" * 10_000, "%s", "{}", "${HOME}"),
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/null/x", "/proc/self/mem", "sqlite:///", "nosuch://x"),
    *("postgresql://127.0.0.1:1/x", "x.journal", "zero.journal", "broken.db", "sqlite:///broken.db", "cpu-smal"),
    *("sqlite:///" + "x" * 300, "sqlite:////dev/null/x.db", "brust-v0", "pdi"),
)
# Not drawn: folders of the system that a command could write into; Ray, which starts processes of its own.
LEFT_OUT = ("real-ray", "--ray")


def test_what_is_known_good_is_declared_somewhere() -> None:
    declared = {param.name for command in COMMANDS.values() for param in command.params}
    assert set(GOOD) <= declared


def values_of(param: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Good and odd texts for an argument or option."""
    info = param.type_descriptor.parameter_info
    if param.type_descriptor.annotation in (int, float) or info.min is not None:
        few, low, high = param.name in FEW, info.min or 0, info.max
        beyond = () if high is None else (str(high + 1),) if few else (str(high), str(high + 1))
        odd = tuple(text for text in ODD if not few or text.strip("9-") == text)
        return tuple(str(low + k) for k in range(2 if few else 4)), (str(low - 1), *beyond, *odd)
    known = (*PATHS, *(word for words in GOOD.values() for word in words))
    return GOOD.get(param.name, known), (*ODD, *PATHS)


@st.composite
def command_lines(draw: st.DrawFn, name: str) -> list[str]:
    """With at most two odd values: for the first that is wrong a command ends, and looks at no other."""
    params = [param for param in COMMANDS[name].params if not set(LEFT_OUT) & set(param.opts)]
    odd = draw(st.sets(st.sampled_from([param.name for param in params]), max_size=2))
    options, words = [], []
    for param in params:
        several = param.nargs == -1 or getattr(param, "multiple", False)
        values = st.sampled_from(values_of(param)[param.name in odd])
        if param.param_type_name == "argument" or param.required or param.name in odd or draw(st.integers(0, 3)) == 0:
            for _ in range(draw(st.integers(1, 3)) if several else 1):
                if param.param_type_name == "argument":
                    words.append(draw(values))
                else:
                    options += [param.opts[0]] if param.is_flag else [param.opts[0], draw(values)]
    if draw(st.integers(0, 19)) == 0:
        options.append(draw(st.sampled_from(("--bogus", "-x", "--help", "--", "\x1b[31m"))))
    return [*name.split(), *words, *options] if draw(st.booleans()) else [*name.split(), *options, *words]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_any_command_line_ends_well(name: str, run: Run) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    @given(command_lines(name))
    def check(arguments: list[str]) -> None:
        outcome = run(arguments)
        assert not outcome.complaints(), f"helm-gym {arguments}\n{outcome.stderr[-3000:]}"

    check()


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["\x1b[31m"], ["--bogus"], ["--version", "x"], ["evalute"], ["x" * 10_000], ["--" + "x" * 10_000], [""]],
    ids=lambda arguments: repr(arguments[0][:9]),
)
def test_what_is_no_command_ends_well(arguments: list[str], run: Run) -> None:
    assert not run(arguments).complaints()
