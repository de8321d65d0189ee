"""HSTU (Zhai et al., ICML 2024), the production variant, for inference over cached history."""
