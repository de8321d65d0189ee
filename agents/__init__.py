"""Reference agents that learn or control."""
