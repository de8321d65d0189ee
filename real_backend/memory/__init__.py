"""The memory manager: one pool of pages for the embedding cache and the KV cache, compiled, shared by both rungs."""
