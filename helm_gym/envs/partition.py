"""The Gymnasium environment: lane 0 of a control loop that has one lane."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from helm_gym.actions import Mode
from helm_gym.control_loop import ControlLoop, Step
from helm_gym.envs.arguments import ProfileLike, TaskLike, TraceLike, open_loop
from helm_gym.envs.info import describe_lane
from helm_gym.envs.single_lane_env import LaneEnv
from helm_gym.envs.vector import Box, Floats


class PartitionEnv(LaneEnv):
    """
    ## Description

    A GPU serves requests of a generative recommender (HSTU). Its memory pool is shared by an embedding cache (EMB) and
    a KV cache: `alpha` is EMB's share. A miss of EMB fetches a row over the host link, a miss of KV computes a user's
    history again, and which costs more changes with the workload: users return or are new, histories grow, items go
    viral. Each step serves one control interval of requests while the memory manager moves pages, within its budget,
    towards a target alpha that the agent sets. Memory that has changed hands is cold at first, so a move pays late.

    ## Action Space

    `Box(-1, 1, (1,), float32)`. With `action_mode="delta"`, the change of the target alpha over the profile's largest
    step (`max_step`, .1); with `"absolute"`, the target itself, -1 the least and 1 the largest alpha of the profile.

    ## Observation Space

    `Box(low, high, (46,), float32)`: telemetry of a rolling window of requests that a live node can report too, scaled
    by fixed figures ("service" is the mean service time at the steady optimum, an eighth of the SLO) and clipped.

    | Num | Observation | Min | Max | Meaning |
    |-----|-------------|-----|-----|---------|
    | 0 | alpha | 0 | 1 | EMB's share of the pool |
    | 1 | target_alpha | 0 | 1 | the split being moved towards |
    | 2 | moving | -1 | 1 | pages still to be moved / pool, towards EMB |
    | 3 | moved | -1 | 1 | pages moved / budget, towards EMB |
    | 4 | emb_hit_rate | 0 | 1 | row look-ups that hit |
    | 5 | kv_hit_rate | 0 | 1 | requests whose user hit |
    | 6 | emb_miss | 0 | 1 | rows missed a request / 200 |
    | 7 | kv_recomputed | 0 | 1 | tokens again a request / longest history |
    | 8 | compute_share | 0 | 1 | of service time |
    | 9 | transfer_share | 0 | 1 | of service time |
    | 10 | emb_gain | 0 | 1 | what EMB saves one shadow depth larger, / .2 service |
    | 11 | emb_loss | 0 | 1 | what EMB loses one shadow depth smaller, / .2 service |
    | 12 | kv_gain | 0 | 1 | what KV saves one shadow depth larger, / .2 service |
    | 13 | kv_loss | 0 | 1 | what KV loses one shadow depth smaller, / .2 service |
    | 14–22 | predicted | 0 | 1 | simulated service at alpha 0.1 ... 0.9, / 4 service |
    | 23 | returning_share | 0 | 1 | requests of users seen again in the window |
    | 24 | unique_users | 0 | 1 | distinct users a request |
    | 25 | mean_history | 0 | 1 | history / longest history |
    | 26 | load | 0 | 1 | arrival rate x service / 2 |
    | 27 | utilisation | 0 | 1 | busy time over time / 2 |
    | 28 | queue_depth | 0 | 1 | log, 1 at 200 requests |
    | 29 | emb_empty | 0 | 1 | EMB slots not filled |
    | 30 | kv_empty | 0 | 1 | KV pages not occupied |
    | 31 | backlog | 0 | 1 | rows to be refilled / shadow depth |
    | 32 | service_mean | 0 | 1 | / 4 service |
    | 33 | service_p99 | 0 | 1 | / 16 service |
    | 34 | sojourn_mean | 0 | 1 | log of / SLO, 1 at 50 SLO |
    | 35 | sojourn_p50 | 0 | 1 | log of / SLO, 1 at 50 SLO |
    | 36 | sojourn_p99 | 0 | 1 | log of / SLO, 1 at 50 SLO |
    | 37 | slo_violations | 0 | 1 | share of answers |
    | 38 | service_trend | -1 | 1 | log10 of interval / window |
    | 39 | sojourn_trend | -1 | 1 | log10 of interval / window |
    | 40 | change_emb_hit_rate | -1 | 1 | since the last interval |
    | 41 | change_kv_hit_rate | -1 | 1 | since the last interval |
    | 42 | change_returning_share | -1 | 1 | since the last interval |
    | 43 | change_unique_users | -1 | 1 | since the last interval |
    | 44 | change_mean_history | -1 | 1 | since the last interval |
    | 45 | change_load | -1 | 1 | since the last interval |

    ## Rewards

    The negative cost of the interval, `mean / SLO + w_tail P99 / SLO + w_slo violations + w_move |moved share|`, of the
    requests' sojourn, with the task's weights. It has no lower bound: under a split that cannot keep up, queues grow.

    `info["cost"]` holds its terms (`mean`, `tail`, `slo`, `move`). For analysis only, `info` also holds `alpha`,
    `target_alpha`, the hidden workload of the interval (`workload`, a dict of its parameters; `segment`, the kind of
    segment it lies in) and the episode's `seed`: `reset(seed=info["seed"])` plays the same workload again. A learned
    backend adds `extrapolating`: whether it was asked for what it does not know.

    ## Starting State

    Caches warmed for the task's `warmup` intervals at its `start_alpha`. `reset(seed=s)` plays the workload of seed s,
    whatever the actions (evaluation makes it longer, by the intervals in which a policy settles unscored); a reset
    without a seed draws one from `np_random`, from 2³² up, so that it is never one of the seeds that tasks publish.
    Seeds are whole numbers from 0 to 2⁶³ - 1, Python's or numpy's. `reset` has no options and refuses those given.

    ## Episode End

    Truncation at the task's horizon (480 intervals). There is no termination: serving does not end.

    ## Arguments

    ```python
    >>> import gymnasium as gym, helm_gym
    >>> env = gym.make("helm/Partition-v0", regime="burst", action_mode="absolute")
    >>> env.action_space
    Box(-1.0, 1.0, (1,), float32)

    ```

    * `task` or `regime`: a task's name (`helm-gym tasks`) or a `Task`; a regime stands for its task. `mixed-v0` where
      neither is given. `helm/Steady-v0`, `helm/Trend-v0`, `helm/Burst-v0`, `helm/Mixed-v0` and `helm/Trace-v0` set it.
    * `profile`: a shipped profile's name, a YAML file or a `Profile`; the task's own where not given.
    * `backend`: `"surrogate"` (the default: learned, thousands of lanes; `"surrogate:FOLDER"` for one of your own),
      `"modelled"` (the memory manager on single requests, with modelled time) or `"real"`, which runs and times HSTU
      and is registered as nondeterministic with `Live` in the id: `helm/PartitionLive-v0`, `helm/BurstLive-v0`, ...
    * `action_mode`: `"delta"` (default) or `"absolute"`.
    * `trace`: a recording's path (docs/traces.md has the formats) or a `Trace`; the trace task needs one.
    * `intervals`: length of an episode, at most 100,000; the task's horizon where not given.
    * `render_mode`: `"ansi"` or `"rgb_array"`.

    Where an object is taken (`Task`, `Profile`, `Trace`), a dict of its fields is, too. `env.spec` holds it so, and
    `gym.make(EnvSpec.from_json(env.spec.to_json()))` makes the same environment again. `env.spec.max_episode_steps` is
    the length of an episode. In a spec that is handed to `gym.make` it is a limit, as Gymnasium has it: for longer
    episodes, give `max_episode_steps=-1` beside `intervals`. `gym.make(id, max_episode_steps=n)` truncates earlier and
    leaves the workload's path as it is.

    ## Vectorized environment

    `gym.make_vec(id, num_envs=n)` opens `PartitionVectorEnv`: n lanes of one control loop, stepped as one batch, each
    bit-identical to this environment under the same seed. Its autoreset is next-step; `autoreset_mode="SameStep"` and
    `"Disabled"` are Gymnasium's other modes. `DiscreteActions` and `DiscreteVectorActions` (`helm_gym.envs.discrete`)
    offer discrete actions with masks. Stable-Baselines3, which has vectors of its own, takes
    `helm_gym.envs.sb3.PartitionVecEnv(n, task=...)`.

    ## Version History

    * v0: initial version.
    """

    def __init__(
        self,
        task: TaskLike | None = None,
        regime: str | None = None,
        profile: ProfileLike | None = None,
        backend: str = "surrogate",
        action_mode: Mode = "delta",
        trace: TraceLike | None = None,
        intervals: int | None = None,
        render_mode: str | None = None,
    ):
        """See the class.

        Raises:
            UnknownNameError: no such task, regime, profile, backend, action_mode or render_mode.
            InvalidInputError: an argument of another type or out of its range, arguments that do not go together, a
                file that cannot be used, or more memory than there is.
        """
        loop = open_loop(1, task, regime, profile, backend, action_mode, trace, intervals, render_mode)
        super().__init__(loop, lane_spaces(loop), render_mode)

    def apply(self, action: Floats) -> Step:
        return self.loop.step(action[None, None])

    def observe(self, outcome: Step) -> Floats:
        return outcome.observation[0, 0]

    def describe(self, outcome: Step) -> dict[str, Any]:
        return describe_lane(self.loop, outcome, self._seed)


def lane_spaces(loop: ControlLoop) -> tuple[Box, Box]:
    """What one lane shows and takes."""
    layout = loop.layout
    return spaces.Box(layout.low, layout.high, dtype=np.float32), spaces.Box(-1.0, 1.0, (1,), np.float32)
