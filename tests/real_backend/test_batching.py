"""What `helm-gym bench` says of micro-batches: both rungs, every size, little padding."""

from __future__ import annotations

import dataclasses

import pytest

from helm_gym.benchmarks.figure import figure_of
from helm_gym.cli.bench import _record
from real_backend.batching import SIZES, batch_rates, request_ms
from tests.real_backend.machine import tiny_profile


def test_rates_of_both_rungs_by_size_of_the_micro_batches():
    rates = batch_rates(tiny_profile(60), intervals=4, warm=1)
    for of in (rates.measured, rates.modelled, rates.padding_ratio):
        assert tuple(of) == SIZES and min(of.values()) > 0
    assert rates.cost.per_token_ms + rates.cost.base_ms + rates.cost.per_request_ms > 0
    # Four queries share a pass: of the few tokens of this profile that is a third, of cpu-small's six in a thousand.
    assert 1.0 <= max(rates.padding_ratio.values()) < 2.0


@pytest.mark.parametrize("kind", ["hit", "miss"])
def test_a_requests_time_beside_torchs(kind):
    ours, plain = request_ms(tiny_profile(60), kind, runs=2, repeats=3)
    assert len(ours) == len(plain) == 2 and min(ours + plain) > 0


def test_json_has_a_figures_values_by_size_beside_its_value():
    figure = dataclasses.replace(figure_of([1.0, 3.0], "x", None, ""), by_batch={"measured": {1: 2.0, 8: 4.0}})
    record = _record(figure)
    assert record["value"] == 2.0 and record["measured"] == {1: 2.0, 8: 4.0} and "by_batch" not in record
