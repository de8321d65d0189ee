"""The learned surrogate of the real backend: its data, networks, compiled steps, and how true it is."""

from helm_gym.registry import register

register("backend", "surrogate", "surrogate_backend.open_surrogate:open_surrogate", "learned, a million steps a second")
