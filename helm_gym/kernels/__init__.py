"""Compiled code: the decorator, the cache of machine code and its key, and the control loop's kernels."""
