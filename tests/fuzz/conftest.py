"""The warm process that all fuzzing shares, and a folder of material for each case."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.fuzz.material import write_material
from tests.fuzz.warm import PATIENCE_S, Outcome, Warm

Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    process = Warm(tmp_path_factory.mktemp("warm"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def run(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command line in a fresh folder, in the midst of two more: what climbs out of it stays in reach."""
    base = tmp_path_factory.mktemp("cases")

    def run(
        arguments: Sequence[str],
        prepare: Callable[[pathlib.Path], object] = write_material,
        patience_s: float = PATIENCE_S,
    ) -> Outcome:
        shutil.rmtree(base / "a", ignore_errors=True)
        folder = base / "a" / "b" / "c"
        folder.mkdir(parents=True)
        prepare(folder)
        return warm.run(arguments, folder, patience_s)

    return run
