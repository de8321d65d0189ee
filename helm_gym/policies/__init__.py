"""Policies made of other things: a function of one observation, a model of Stable-Baselines3."""
