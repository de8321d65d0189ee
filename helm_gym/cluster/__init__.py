"""Clusters of nodes: their topology, how requests are routed, and what a router observes."""
