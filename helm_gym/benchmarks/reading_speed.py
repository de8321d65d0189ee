"""How fast recordings and logs are read, beside pyarrow reading the same file."""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from helm_gym.benchmarks.figure import RUNS, Figure, figure_of, rates_of

TRACE_ROWS, TRACE_IDS = 200_000, 24  # of the files that are read, and ids of blocks in a row, as Mooncake's has
LOG_ROWS = 10_000_000

# In a process of its own, whose peak memory is the reading's. Prints CPU seconds and mebibytes.
_MEASURE = """
import resource, sys, time
started = time.process_time()
{work}
print(time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
_OURS = "from helm_gym.workload.logs import read_log; read_log(sys.argv[1])"
_ARROW_CSV = "from pyarrow import csv; [None for _ in csv.open_csv(sys.argv[1])]"
_ARROW_PARQUET = "from pyarrow import parquet; [None for _ in parquet.ParquetFile(sys.argv[1]).iter_batches()]"


def trace_rows_per_s() -> Figure:
    """Recorded arrivals in Azure's CSV format, read and checked, beside pyarrow's own reader."""
    import pyarrow.csv

    start = np.datetime64("2023-11-16T18:15:46", "ns")
    rng = np.random.default_rng(0)
    times = np.datetime_as_string(start + np.cumsum(rng.integers(1, 10**8, TRACE_ROWS)) * 100)  # steps of 100 ns
    rows = (
        f"{time[:27].replace('T', ' ')},{n},44"
        for time, n in zip(times, rng.integers(1, 8000, TRACE_ROWS), strict=True)
    )
    return _reading("CSV", ["TIMESTAMP,ContextTokens,GeneratedTokens", *rows], pyarrow.csv.read_csv)


def trace_jsonl_rows_per_s() -> Figure:
    """The same in Mooncake's format, with the ids of blocks that tell who returns."""
    import pyarrow.json

    ids = np.sort(np.random.default_rng(0).integers(0, 10 * TRACE_ROWS, (TRACE_ROWS, TRACE_IDS)))
    rows = [
        f'{{"timestamp": {t}, "input_length": 6758, "output_length": 500, "hash_ids": {own}}}'
        for t, own in enumerate(ids.tolist())
    ]
    return _reading(f"JSONL with {TRACE_IDS} ids in a row", rows, pyarrow.json.read_json)


def _reading(kind: str, rows: list[str], peer: Callable[[str], object]) -> Figure:
    from helm_gym.workload.traces import read_trace

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{row}\n" for row in rows)
        ours, theirs = (rates_of(functools.partial(read, path), TRACE_ROWS) for read in (read_trace, peer))
    doc = f"CPU time of reading {TRACE_ROWS:,} rows of {kind}; pyarrow's reader parses the same file and checks nothing"
    return figure_of(ours, "rows/s", None, doc, {"pyarrow": statistics.median(theirs)})


def log_csv_rows_per_s() -> Figure:
    """Ten million interactions in Taobao's CSV format, read, checked and sorted, beside pyarrow's own reader."""
    from pyarrow import csv

    options = csv.WriteOptions(include_header=False, quoting_style="none")
    names = ("user", "item", "category", "behavior", "time")
    return _reading_log("Taobao's CSV", lambda log, path: csv.write_csv(log.select(names), path, options), _ARROW_CSV)


def log_parquet_rows_per_s() -> Figure:
    """The same in Yambda's Parquet format."""
    from pyarrow import parquet

    def write(log: Any, path: str) -> None:
        columns = log.select(("user", "item", "time")).rename_columns(("uid", "item_id", "timestamp"))
        parquet.write_table(columns, path)

    return _reading_log("Yambda's Parquet", write, _ARROW_PARQUET)


def _reading_log(kind: str, write: Callable[[Any, str], object], peer: str) -> Figure:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "log")
        write(_log_of(LOG_ROWS), path)
        ours, theirs = ([_run(work, path) for _ in range(RUNS)] for work in (_OURS, peer))
    peak, other_peak = (max(memory for _, memory in runs) for runs in (ours, theirs))
    doc = (
        f"CPU time of reading {LOG_ROWS:,} interactions of {kind} out of order in a process of its own, peak memory "
        f"{peak:,.0f} MB; pyarrow's reader goes through the same file, checks nothing and keeps nothing: "
        f"{other_peak:,.0f} MB"
    )
    peers = {"pyarrow": LOG_ROWS / statistics.median(seconds for seconds, _ in theirs)}
    return figure_of([LOG_ROWS / seconds for seconds, _ in ours], "rows/s", None, doc, peers)


def _run(work: str, path: str) -> tuple[float, float]:
    """CPU seconds and peak memory (MB) of ``work`` on a file."""
    code = _MEASURE.format(work=work)
    environment = {**os.environ, "HELM_GYM_QUIET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code, path], check=True, capture_output=True, text=True, env=environment
    )
    seconds, memory = map(float, done.stdout.split())
    return seconds, memory


def _log_of(rows: int) -> Any:
    """A table of interactions: a million users, items by popularity, nine days, in no order."""
    import pyarrow

    rng = np.random.default_rng(0)
    behavior = pyarrow.DictionaryArray.from_arrays(rng.integers(0, 4, rows, np.int8), ["pv", "buy", "cart", "fav"])
    item = (1000 * rng.pareto(1.0, rows)).astype(np.int64) % 4_000_000
    return pyarrow.table(
        {
            "user": rng.integers(1, 1_000_001, rows),
            "item": item,
            "category": item % 9_000,
            "behavior": behavior.cast(pyarrow.string()),
            "time": 1_511_539_200 + rng.integers(0, 9 * 86_400, rows),
        }
    )
