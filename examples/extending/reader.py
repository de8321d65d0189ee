"""A data-set reader of one's own: a gateway's log of arrivals, in milliseconds, with the length of each input.

python examples/extending/reader.py
cd examples/extending && HELM_GYM_IMPORT=reader helm-gym evaluate pid --task trace-v0 --trace gateway.csv
"""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np

from helm_gym.registry import register
from helm_gym.workload.readers.trace_formats import Format
from helm_gym.workload.traces import read_trace

GATEWAY = Format("gateway log", "csv", time="received_ms", unit="ms", tokens="history", tells=("gateway",))

register("reader", "gateway", GATEWAY)

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(5.0, 1000)).round(3)
    rows = [f"{at},{length},eu-1" for at, length in zip(times, rng.integers(16, 512, 1000), strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "gateway.csv")
        path.write_text("\n".join(["received_ms,history,gateway", *rows]) + "\n", encoding="utf-8")
        print(read_trace(path).summary)
