"""Load on a live service: a task's traffic over HTTP, open loop, and MLCommons LoadGen's Server scenario."""
