"""The compiled step of a cluster's surrogate."""
