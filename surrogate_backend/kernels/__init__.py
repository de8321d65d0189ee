"""Compiled parts of the surrogate: the fluid model, the networks' inputs, and the step of a lane."""
