"""The service: nodes that answer requests in real time, a router in front of them, and its HTTP interfaces."""
