"""Logs of the real backend to learn from: what is excited, how it is collected, kept and read."""
