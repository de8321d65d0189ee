"""What an agent must beat: static splits, rules, the miss-ratio-curve controller, and the oracles."""
