"""How a policy is judged: the protocol, the offline optimum, metrics, statistics and the report."""
