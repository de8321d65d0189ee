"""Training by name: what can be trained, the run folder that a training fills, and the space that tuning searches."""
