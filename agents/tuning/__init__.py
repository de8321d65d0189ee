"""Hyper-parameter search: Optuna over an agent's own search space, with paired seeds and a second look at the best."""
