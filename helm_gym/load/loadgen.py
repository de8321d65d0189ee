"""MLCommons LoadGen's Server scenario on a service: Poisson queries at a target rate, a limit of P99, and a verdict.

MLPerf's DLRMv3 is an HSTU ranker whose queries, a user's history and candidates each, must be answered with a P99 of at
most 80 ms. This is a scenario of that shape at any scale: the library's samples are a task's requests, each with its
whole history. LoadGen times queries from when it issues them, and decides itself whether the run is valid.
"""

from __future__ import annotations

import array
import asyncio
import collections
import contextlib
import dataclasses
import importlib
import itertools
import json
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import IncompatibleError, InvalidInputError
from helm_gym.load.client import Client
from helm_gym.load.open_loop import RANK, check_service
from helm_gym.load.stream import Request
from helm_gym.profile import Profile

OFFLINE = "real_backend.hstu.offline:offline_scores"
TOLERANCE = 1e-5  # between scores over HTTP and offline ones
_PERCENTILE = 0.99
LEAST_QUERIES = 700  # LoadGen calls no P99 valid of fewer than 662, all of them in time


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What is asked of the service.

    Attributes:
        rate: queries/s, Poisson.
        p99_ms: the limit, from a query's issue to its answer.
        seconds: the least that it lasts; in accuracy mode each sample is asked for once.
        accuracy: whether scores are compared with offline ones, and not times with the limit.
    """

    rate: float
    p99_ms: float
    seconds: float
    seed: int
    accuracy: bool


def library(requests: Iterable[Request], count: int) -> list[Request]:
    """The first ``count`` requests of a stream, each with its whole history."""
    found = list(itertools.islice(requests, count))
    if len(found) < count:
        raise InvalidInputError(f"The task has {len(found)} requests; ask for at most so many samples.")
    return found


def run(
    url: str,
    samples: Sequence[Request],
    scenario: Scenario,
    profile: Profile,
    logs: pathlib.Path | None = None,
    tick: Callable[[str, int, int], Any] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Runs the scenario, and returns LoadGen's result with ours.

    Args:
        logs: a folder for LoadGen's own logs; a temporary one where None.
        tick: is told how far it is.

    Raises:
        IncompatibleError: LoadGen is not installed.
        HelmError: the service does not answer, or takes no requests.
    """
    generator = _loadgen()
    check_service(url)
    with contextlib.ExitStack() as stack:
        folder = logs or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        system = stack.enter_context(_System(generator, url, samples, keep=scenario.accuracy))
        expected = len(samples) if scenario.accuracy else round(scenario.rate * scenario.seconds)
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.5):
                tick("", min(system.answered, expected), expected)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            _start(generator, system, len(samples), scenario, folder)
        finally:
            ended.set()
            watcher.join()
        told = _result(folder) | {"failed": sum(system.faults.values()), "faults": dict(system.faults)}
        if told["failed"]:
            told["verdict"] = "INVALID"
            told["why"] = f"{told['failed']} queries were not answered with scores"
        if scenario.accuracy:
            told |= _accuracy(system.scores, samples, profile)
    return told


def _loadgen() -> Any:
    try:
        return importlib.import_module("mlperf_loadgen")
    except ImportError as error:
        raise IncompatibleError("LoadGen is not installed; `pip install helm-gym[loadgen]` brings it.") from error


class _System:
    """The system under test, as LoadGen sees it: samples go to the service from a loop in a thread of its own."""

    def __init__(self, generator: Any, url: str, samples: Sequence[Request], keep: bool):
        self._generator, self._url = generator, url
        self._bodies = [sample.body(whole=True) for sample in samples]
        self._candidates = [sample.candidates for sample in samples]
        self._keep = keep
        self.scores: dict[int, NDArray[np.float64]] = {}
        self.answered = 0
        self.faults: collections.Counter[str] = collections.Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> _System:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loadgen", daemon=True)
        self._thread.start()
        self._client = Client(self._url)
        return self

    def __exit__(self, *error: object) -> None:
        async def end() -> None:
            await self._client.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0.01)  # in which connections are closed

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    def issue(self, queries: Sequence[Any]) -> None:
        """LoadGen's: called in its thread at each query's time; must return at once."""
        asked = [(query.id, query.index) for query in queries]
        self._loop.call_soon_threadsafe(self._send, asked)

    def flush(self) -> None:
        """LoadGen's: nothing is held back here."""

    def _send(self, asked: Sequence[tuple[int, int]]) -> None:
        for identity, index in asked:
            task = self._loop.create_task(self._ask(identity, index))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, identity: int, index: int) -> None:
        answer = await self._client.send("POST", RANK, self._bodies[index])
        data = array.array("f")
        if answer.status == 200:
            try:
                told = json.loads(answer.body)
                by_item = dict(zip(told["items"], told["scores"], strict=True))
                scores = np.array([by_item[item] for item in self._candidates[index].tolist()])
            except (ValueError, KeyError, TypeError):
                self.faults["no scores"] += 1
            else:
                data.extend(scores.tolist())
                if self._keep:
                    self.scores[index] = scores
        else:
            self.faults[str(answer.status or answer.body.decode())] += 1
        self.answered += 1
        where, length = data.buffer_info()
        response = self._generator.QuerySampleResponse(identity, where, length * data.itemsize)
        self._generator.QuerySamplesComplete([response])


def _start(generator: Any, system: _System, count: int, scenario: Scenario, folder: pathlib.Path) -> None:
    settings = generator.TestSettings()
    settings.scenario = generator.TestScenario.Server
    settings.mode = generator.TestMode.AccuracyOnly if scenario.accuracy else generator.TestMode.PerformanceOnly
    settings.server_target_qps = scenario.rate
    settings.server_target_latency_ns = round(scenario.p99_ms * 1e6)
    settings.server_target_latency_percentile = _PERCENTILE
    settings.server_coalesce_queries = False
    settings.min_duration_ms = round(scenario.seconds * 1e3)
    settings.min_query_count = LEAST_QUERIES
    settings.qsl_rng_seed, settings.sample_index_rng_seed, settings.schedule_rng_seed = _seeds(scenario.seed)
    output = generator.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    logging = generator.LogSettings()
    logging.log_output, logging.enable_trace = output, False

    def nothing(indices: Sequence[int]) -> None:
        """Samples are in memory."""

    library_of = generator.ConstructQSL(count, count, nothing, nothing)
    under_test = generator.ConstructSUT(system.issue, system.flush)
    try:
        generator.StartTestWithLogSettings(under_test, library_of, settings, logging)
    finally:
        generator.DestroySUT(under_test)
        generator.DestroyQSL(library_of)


def _seeds(seed: int) -> list[int]:
    return [int(word) for word in np.random.SeedSequence([seed, 0x4C47]).generate_state(3, np.uint64) >> np.uint64(1)]


_KEYS = {  # LoadGen's key -> ours, and by what it is divided
    "result_scheduled_samples_per_sec": ("scheduled_qps", 1.0),
    "result_completed_samples_per_sec": ("completed_qps", 1.0),
    "result_mean_latency_ns": ("mean_ms", 1e6),
    "result_50.00_percentile_latency_ns": ("p50_ms", 1e6),
    "result_90.00_percentile_latency_ns": ("p90_ms", 1e6),
    "result_99.00_percentile_latency_ns": ("p99_ms", 1e6),
    "result_99.90_percentile_latency_ns": ("p99.9_ms", 1e6),
    "result_max_latency_ns": ("max_ms", 1e6),
    "result_query_count": ("queries", 1.0),
}


def _result(folder: pathlib.Path) -> dict[str, Any]:
    """LoadGen's result, from its detailed log: a JSON object a line."""
    told: dict[str, Any] = {"verdict": "NONE"}
    for key, value in _entries(folder / "mlperf_log_detail.txt"):
        if key == "result_validity":
            told["verdict"] = str(value)
        elif key in ("result_invalid_reason", "early_stopping_result") and value and told["verdict"] != "VALID":
            told["why"] = " ".join(str(value).replace(" * ", " ").split())
        elif key in _KEYS:
            name, unit = _KEYS[key]
            told[name] = float(value) / unit
    return told


def _entries(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    mark = ":::MLLOG "
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(mark):
            entry = json.loads(line[len(mark) :])
            yield entry["key"], entry["value"]


def _accuracy(scores: dict[int, NDArray[np.float64]], samples: Sequence[Request], profile: Profile) -> dict[str, Any]:
    module, _, name = OFFLINE.partition(":")
    offline = getattr(importlib.import_module(module), name)
    asked = sorted(scores)
    started = time.perf_counter()
    expected = offline(profile, [samples[k].history for k in asked], [samples[k].candidates for k in asked])
    apart = [float(np.abs(scores[k] - theirs).max()) for k, theirs in zip(asked, expected, strict=True)]
    largest = max(apart, default=float("nan"))
    good = sum(distance <= TOLERANCE for distance in apart)
    return {
        "verdict": "VALID" if good == len(samples) else "INVALID",
        "compared": len(asked),
        "equal": good,
        "largest_difference": largest,
        "tolerance": TOLERANCE,
        "offline_seconds": time.perf_counter() - started,
    }
