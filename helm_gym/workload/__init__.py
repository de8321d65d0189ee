"""Regimes, request sampling and recorded traces: what arrives, fixed by seeds."""
