"""Policies of strangers: checked and run in a process that can compute and do nothing else.

    with SandboxedPolicy(content, layout) as policy:
        action, state = policy.act(observation, state)

The child (``child``) imports what it needs, gives its rights away (``confine``), and only then looks at the file: it
is parsed, checked and run there. The environment, the workload and the seeds stay in this process.
"""

from leaderboard.sandbox.confine import missing
from leaderboard.sandbox.policy import Limits, PolicyFault, SandboxedPolicy

__all__ = ["Limits", "PolicyFault", "SandboxedPolicy", "missing"]
