"""The PettingZoo environment: one agent a node and one for the router, over a control loop of one lane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from gymnasium import logger, spaces
from gymnasium.utils import seeding
from numpy.typing import NDArray
from pettingzoo.utils.conversions import parallel_to_aec
from pettingzoo.utils.env import AECEnv, ParallelEnv

from helm_gym.actions import Mode, as_floats
from helm_gym.cluster.routing import WEIGHTS
from helm_gym.control_loop import Step
from helm_gym.envs.arguments import (
    ClusterLike,
    ProfileLike,
    TaskLike,
    TraceLike,
    check_options,
    check_seed,
    choose_cluster,
    one_of,
    open_loop,
    whole_number,
)
from helm_gym.envs.cluster_gymnasium import apply_joint, cluster_spaces, global_state
from helm_gym.envs.cluster_render import ClusterScreen
from helm_gym.envs.info import describe_cluster, describe_lane
from helm_gym.envs.partition import lane_spaces
from helm_gym.envs.render import METADATA
from helm_gym.envs.vector import Box, Floats, episode_seed
from helm_gym.errors import InvalidInputError
from helm_gym.reward import TERMS

Sharing = Literal["team", "node"]
ROUTER = "router"
_OF_CHECKERS = "options"  # an option that PettingZoo's checkers hand to every environment
Outcome = tuple[dict[str, Floats], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]


class ClusterParallelEnv(ParallelEnv[str, Floats, Floats]):
    """
    ## Description

    The cluster of `ClusterEnv` (`helm/Cluster-v0`) with one agent a node, `node_0` … `node_{N-1}`, and the agent
    `router`. All act at once; each step serves one control interval.

    ## Agents

    A node's agent is there from the first interval of the episode in which its node is alive to the last: it joins
    `agents` when its node first comes, and is terminated, and leaves, when its node is lost for the rest of the
    episode. While a node is away and will be back it stays an agent, with `info["alive"]` False, an observation of
    zeros and a node's reward of 0, and its action does nothing. PettingZoo knows no agent that comes back ("agents
    cannot resurrect"), and a termination would tell a learner that nothing follows, where cold caches do.

    ## Action Space

    | Agent | Space | Meaning |
    |-------|-------|---------|
    | node_i | `Box(-1, 1, (1,), float32)` | as in `PartitionEnv`, by `action_mode` |
    | router | `Box(-1, 1, (3,), float32)` | weights of KV, embedding rows and load, `(1 + a)²`, as in `ClusterEnv` |

    ## Observation Space

    | Agent | Space | Meaning |
    |-------|-------|---------|
    | node_i | `Box(low, high, (46,), float32)` | its node's telemetry, the table of `PartitionEnv` |
    | router | `Box(low, high, (43,), float32)` | statistics over the nodes, the last 43 rows of `ClusterEnv`'s table |

    Neither depends on N, so that one policy for nodes and one for the router serve any number. `state()` is what
    `ClusterEnv` shows: all nodes' observations (zeros for a node that is lost), then the router's.

    ## Rewards

    `reward="team"`: every agent gets the cluster's, the negative cost of its nodes weighed by the requests that they
    were given. `reward="node"`: a node gets the negative cost of its own requests, 0 where it had none, and the router
    the cluster's.

    `infos["node_i"]` holds `alive`, `requests`, `alpha`, `target_alpha` and `cost`, the terms of the node's own;
    `infos["router"]` holds `cost` (the cluster's), `spills`, `rerouted`, `given_up` and, for analysis only, the hidden
    `workload`, its `segment` and the episode's `seed`.

    ## Starting State

    As `ClusterEnv`. `reset(seed=s)` plays the workload of seed s; a reset without a seed draws the next one from a
    generator that the last seed given has seeded. There are no options (PettingZoo's checkers hand over
    `{"options": 1}`, which is taken and does nothing).

    ## Episode End

    All agents are truncated at the task's horizon (480 intervals).

    ## Arguments

    ```python
    >>> import pettingzoo, helm_gym
    >>> env = pettingzoo.make("parallel", "helm/cluster-v0", regime="burst", cluster=2)
    >>> env.possible_agents
    ['node_0', 'node_1', 'router']
    >>> env.action_space("router")
    Box(-1.0, 1.0, (3,), float32)

    ```

    * `reward`: `"team"` (default) or `"node"`.
    * `max_cycles`: truncates episodes earlier; `intervals` in contrast also shortens the workload's path.
    * `task` or `regime`, `profile`, `backend`, `cluster`, `action_mode`, `trace`, `intervals`, `render_mode`: see
      `ClusterEnv`.

    `pettingzoo.make("aec", "helm/cluster-v0", ...)` opens the AEC form, made by `parallel_to_aec`.

    ## Version History

    * v0: initial version.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **METADATA,
        "name": "helm/cluster-v0",
        "is_parallelizable": True,
    }

    def __init__(
        self,
        task: TaskLike | None = None,
        regime: str | None = None,
        profile: ProfileLike | None = None,
        backend: str = "modelled",
        cluster: ClusterLike = 4,
        action_mode: Mode = "delta",
        trace: TraceLike | None = None,
        reward: Sharing = "team",
        intervals: int | None = None,
        max_cycles: int | None = None,
        render_mode: str | None = None,
    ):
        """See the class.

        Raises:
            UnknownNameError: no such task, regime, profile, backend, action_mode, reward or render_mode.
            InvalidInputError: as ``PartitionEnv``, and for a cluster that cannot be.
        """
        one_of("reward", reward, get_args(Sharing))
        if max_cycles is not None:
            max_cycles = whole_number("max_cycles", max_cycles, "interval")
        cluster = choose_cluster(cluster)
        self.loop = open_loop(1, task, regime, profile, backend, action_mode, trace, intervals, render_mode, cluster)
        self.reward, self.max_cycles = reward, max_cycles
        self.nodes = [f"node_{k}" for k in range(self.loop.shape[1])]
        self.possible_agents = [*self.nodes, ROUTER]
        self.agents: list[str] = []
        self.render_mode = render_mode
        self._screen = ClusterScreen(self.loop) if render_mode else None
        self.state_space, _ = cluster_spaces(self.loop)
        router = self.loop.router_layout
        assert router is not None
        shown, taken = lane_spaces(self.loop)
        self._shown = dict.fromkeys(self.nodes, shown) | {ROUTER: spaces.Box(router.low, router.high, dtype=np.float32)}
        # A space of its own for each, since each space samples by a generator of its own.
        self._taken = {node: spaces.Box(taken.low, taken.high, dtype=np.float32) for node in self.nodes}
        self._taken[ROUTER] = spaces.Box(-1.0, 1.0, (len(WEIGHTS),), np.float32)
        self._random, _ = seeding.np_random()
        self._seed = 0
        self._outcome: Step | None = None

    def observation_space(self, agent: str) -> Box:
        """What ``agent`` is shown."""
        return self._shown[agent]

    def action_space(self, agent: str) -> Box:
        """What ``agent`` may do."""
        return self._taken[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Floats], dict[str, dict[str, Any]]]:
        """Starts the episode of ``seed``, or of the next seed that is drawn.

        Args:
            seed: a whole number from 0 to 2^63 - 1, of Python's or numpy's.
            options: there are none, but for the key ``options`` of PettingZoo's checkers, which does nothing.

        Raises:
            InvalidInputError: another seed, an option, an environment that is closed, or a cluster whose outages leave
                no node alive in some interval.
        """
        if options != {_OF_CHECKERS: 1}:
            check_options(options)
        if seed is not None:
            seed = check_seed(seed)
            self._random, _ = seeding.np_random(seed)
        self._seed = episode_seed(seed, self._random)
        outcome = self.loop.reset([self._seed])
        self._first, self._last = self._lifespans()
        self.agents = self._present(0)
        self._describe(outcome)
        return self._observations(self.agents), {agent: self._infos[agent] for agent in self.agents}

    def step(self, actions: Mapping[str, Any]) -> Outcome:
        """Serves one control interval under one action of each of ``agents``.

        Raises:
            InvalidInputError: an action that is missing, of no agent, of a wrong shape, not of real numbers or not
                finite, or an episode that is over.
        """
        if not self.agents:
            raise InvalidInputError("The cluster must be reset before it is stepped, and again after its last step.")
        t = self.loop.t
        outcome = apply_joint(self.loop, self._joint(actions)[None])
        self._describe(outcome)
        ended = outcome.done or t + 1 >= (self.max_cycles or self.loop.intervals)
        present = self._present(t)
        seen = [agent for agent in self.possible_agents if agent in self.agents or agent in present]
        self.agents = [] if ended else present
        return (
            self._observations(seen),
            self._rewards(seen),
            {agent: agent not in present for agent in seen},
            dict.fromkeys(seen, ended),
            {agent: self._infos[agent] for agent in seen},
        )

    def state(self) -> Floats:
        """All nodes' observations, then the router's.

        Raises:
            InvalidInputError: no episode was started.
        """
        if self._outcome is None:
            raise InvalidInputError("The cluster must be reset before it has a state.")
        return global_state(self._outcome)[0]

    def render(self) -> Any:
        """Text (``ansi``), or an image, uint8 (height, width, 3)."""
        if self._screen is None:
            logger.warn("render() shows nothing without a render_mode; give one to pettingzoo.make.")
            return None
        return self._screen.render(self.render_mode, 0)

    def close(self) -> None:
        self.loop.close()
        self.agents = []

    def _lifespans(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The first and the last interval in which each node is alive, (nodes,); of one that never is, last < first."""
        path = self.loop.path
        assert path is not None
        alive = np.ones((path.intervals, len(self.nodes)), bool) if path.alive is None else path.alive[0]
        ever = alive.any(axis=0)
        last = path.intervals - 1 - alive[::-1].argmax(axis=0)
        return np.where(ever, alive.argmax(axis=0), path.intervals), np.where(ever, last, -1)

    def _present(self, t: int) -> list[str]:
        """The agents that there are once interval ``t`` has been served."""
        there = (self._first <= t) & (t <= self._last)
        return [*(node for node, here in zip(self.nodes, there, strict=True) if here), ROUTER]

    def _joint(self, actions: Mapping[str, Any]) -> Floats:
        """The actions of all, (nodes + 3,); those of nodes that are no agents are 0."""
        if not isinstance(actions, Mapping):
            raise InvalidInputError(f"Actions must be a mapping from agents to actions, not {type(actions).__name__}.")
        for agent in actions:
            if agent not in self.agents:
                raise InvalidInputError(
                    f"An action was given for '{agent}', which is none of the agents {self.agents}."
                )
        joint = dict.fromkeys(self.nodes, np.zeros(1, np.float32))
        for agent in self.agents:
            if agent not in actions:
                raise InvalidInputError(
                    f"No action was given for '{agent}'; each of the agents {self.agents} needs one."
                )
            joint[agent] = _checked(agent, actions[agent], self._taken[agent].shape)
        return np.concatenate([*(joint[node] for node in self.nodes), joint[ROUTER]])

    def _observations(self, agents: list[str]) -> dict[str, Floats]:
        outcome = self._outcome
        assert outcome is not None and outcome.cluster is not None
        shown = dict(zip(self.nodes, outcome.observation[0], strict=True)) | {ROUTER: outcome.cluster.router[0]}
        return {agent: shown[agent].copy() for agent in agents}  # state() reads the rows again

    def _rewards(self, agents: list[str]) -> dict[str, float]:
        outcome = self._outcome
        assert outcome is not None and outcome.cluster is not None
        team = outcome.reward.item()
        if self.reward == "team":
            return dict.fromkeys(agents, team)
        own = dict(zip(self.nodes, outcome.cluster.node_reward[0].tolist(), strict=True)) | {ROUTER: team}
        return {agent: own[agent] for agent in agents}

    def _describe(self, outcome: Step) -> None:
        """Keeps ``outcome`` and makes every agent's ``info`` of it, in Python's own types."""
        assert outcome.cluster is not None
        self._outcome = outcome
        if self._screen is not None:
            self._screen.record(outcome)
        of_lane = {key: values[0].tolist() for key, values in describe_cluster(outcome).items()}
        router = describe_lane(self.loop, outcome, self._seed)
        router |= {key: of_lane[key] for key in ("spills", "rerouted", "given_up")}
        del router["alpha"], router["target_alpha"]
        self._infos: dict[str, dict[str, Any]] = {ROUTER: router}
        extrapolating = outcome.telemetry.extrapolating
        for k, (node, terms) in enumerate(zip(self.nodes, outcome.cluster.node_terms[0].tolist(), strict=True)):
            info = {key: of_lane[key][k] for key in ("alive", "requests", "alpha", "target_alpha")}
            info["cost"] = dict(zip(TERMS, terms, strict=True))
            if extrapolating is not None:
                info["extrapolating"] = bool(extrapolating[0, k])
            self._infos[node] = info


def _checked(agent: str, action: Any, shape: tuple[int, ...]) -> Floats:
    values = as_floats(action, shape, f"The action of '{agent}'")
    if not np.isfinite(values).all():
        raise InvalidInputError(f"The action of '{agent}' is {values.tolist()}; it must be finite.")
    return np.clip(values, -1.0, 1.0).astype(np.float32)


def env(**arguments: Any) -> AECEnv:
    """The AEC form; its arguments are those of ``ClusterParallelEnv``."""
    return parallel_to_aec(ClusterParallelEnv(**arguments))
