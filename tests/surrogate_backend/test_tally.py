"""What a node's requests come to, against numpy: sums, largest values and medians of any number of them."""

from __future__ import annotations

import numpy as np
import pytest

from surrogate_backend.clusters.kernels.tally import (
    COUNT,
    LATE,
    MEDIAN,
    RANK,
    ROWS,
    SERVED,
    SPENT,
    SUMS,
    TOP,
    TOP_SERVICE,
    TOP_SOJOURN,
    columns,
    tally,
)

SLO_MS = 4.0


@pytest.mark.parametrize("counts", [[50], [15, 16, 17], [0, 3, 0, 100], [0] * 39 + [1]])
def test_each_node_has_what_its_own_requests_come_to(counts: list[int]) -> None:
    rng = np.random.default_rng(len(counts))
    nodes, number = len(counts), sum(counts)
    node_of = rng.permutation(np.repeat(np.arange(nodes), counts)).astype(np.int32)
    service, sojourn, rank = rng.exponential(2.0, (3, number)).astype(np.float32)
    own = np.full((nodes, SUMS), 9e9, np.float32)
    ordered = np.full((ROWS, columns(nodes, number)), 9e9, np.float32)
    tally(
        node_of, service, sojourn, rank, number, np.float32(SLO_MS), own, *np.full((2, nodes), 7, np.int64), ordered
    )  # fmt: skip
    for n, row in enumerate(own):
        mine = node_of == n
        a, b = service[mine], sojourn[mine]
        assert row[COUNT] == mine.sum() and row[LATE] == (b > SLO_MS).sum()
        np.testing.assert_allclose([row[SERVED], row[SPENT], row[RANK]], [a.sum(), b.sum(), rank[mine].sum()], 1e-5)
        for values, first in ((a, TOP_SERVICE), (b, TOP_SOJOURN)):
            largest = np.zeros(TOP, np.float32)
            largest[: min(TOP, len(values))] = np.sort(values)[::-1][:TOP]
            np.testing.assert_array_equal(row[first : first + TOP], largest)
        if not len(b):
            assert row[MEDIAN] == 0.0
            continue
        # By bisection: within a 256th of twice the mean of where half of them lie above.
        middle, step = row[MEDIAN] / len(b), 2.0 * b.mean() / 256
        assert (b > middle + step).sum() <= len(b) // 2 <= (b > middle - step).sum() + (len(b) == 1)
