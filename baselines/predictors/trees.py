"""Boosted regression trees as plain arrays, and the kernel that evaluates them."""

from __future__ import annotations

from helm_gym.kernels.jit import kernel


@kernel
def boost(x, roots, feature, threshold, left, right, value, out):
    """``out`` (rows,): the sum of what every tree says of ``x`` (rows, features).

    Args:
        roots: int32 (trees,), each tree's first node.
        feature: int32 (nodes,), which one a node splits by; -1 at a leaf.
        threshold: float32 (nodes,); up to it, and at it, a row goes left.
        left, right: int32 (nodes,), the next node; at a leaf, itself.
        value: float32 (nodes,), of a leaf.
    """
    for row in range(x.shape[0]):
        total = 0.0
        for tree in range(roots.shape[0]):
            node = roots[tree]
            while feature[node] >= 0:
                node = left[node] if x[row, feature[node]] <= threshold[node] else right[node]
            total += value[node]
        out[row] = total
