"""Predictors of alpha*: what the paper calls temporal prediction. They learn the offline optimum, and follow it."""
