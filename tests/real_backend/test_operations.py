"""How many operations a request gives to a device: counted, and within a limit."""

from __future__ import annotations

import torch

from helm_gym import profile as profiles
from helm_gym.benchmarks import suite
from real_backend.hstu import pages
from real_backend.operations import Counting, device_operations


def test_a_request_over_pages_takes_half_the_operations_of_a_padded_one():
    """139 and 197 were counted before there were pages (five layers); each is a launch of 5 to 10 us on a GPU."""
    attend = pages.attend
    counts = device_operations(profiles.load("cpu-small"))
    assert counts["pages"]["hit"] <= 70 and counts["pages"]["miss"] <= 70
    assert counts["padded"]["hit"] > 1.5 * counts["pages"]["hit"]
    assert pages.attend is attend


def test_what_computes_is_counted_and_views_are_not():
    with Counting() as counting:
        x = torch.ones(4, 4)
        (x.view(16)[2:].unsqueeze(0) + 1).sum()
    assert counting.count == 3


def test_the_figure_says_what_it_is_of():
    figure = suite.device_operations()
    assert (
        figure.value <= 70
        and figure.rung is None
        and set(figure.peers)
        == {
            "a miss",
            "padded, a hit",
            "padded, a miss",
        }
    )


def test_every_group_of_figures_names_figures():
    assert {name for group in suite.GROUPS.values() for name in group} <= set(suite.FIGURES)
