"""What is learned for whole clusters: the router, in front of nodes that each run one and the same controller."""

from agents.multi_agent.trainable import ROUTER

__all__ = ["ROUTER"]
