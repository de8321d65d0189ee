"""The learned surrogate of the real backend: its data, networks, compiled steps, and how true it is."""

from helm_gym.registry import register

register(
    "backend",
    "surrogate",
    "surrogate_backend.open_surrogate:open_surrogate",
    "learned, a million steps a second",
    argument="[FOLDER]",
)
register(
    "backend",
    "surrogate-measured",
    "surrogate_backend.open_surrogate:open_of_measured",
    "the same, of the measured rung",
    argument="[FOLDER]",
)
