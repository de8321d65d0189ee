"""Suites that every backend, policy and task inherits."""
