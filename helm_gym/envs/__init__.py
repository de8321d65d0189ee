"""Gymnasium environments: drivers of the control loop, with its lanes as environments."""
