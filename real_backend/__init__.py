"""Real HSTU inference in one memory pool, and the modelled rung: the same memory manager with modelled time."""

from helm_gym.registry import register

register("backend", "real", "real_backend.measured:MeasuredBackend", "HSTU run and timed on this machine")
register(
    "backend",
    "modelled",
    "real_backend.modelled:ModelledBackend",
    "the memory manager on single requests, time modelled",
)
register("backend", "real-ray", "real_backend.ray_nodes:RayBackend", "as real, a Ray actor a node (extra ray)")
