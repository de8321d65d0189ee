"""``env.spec``: what an environment was made of, in plain values, and how long its episodes are."""

from __future__ import annotations

import dataclasses

from gymnasium.envs.registration import EnvSpec

from helm_gym.envs.arguments import plain_values


class PlainSpec:
    """An environment whose spec can be written as JSON and made again, whatever its arguments were.

    Gymnasium sets ``spec`` to the arguments as they were given, and knows nothing of the episodes' length, since no
    ``TimeLimit`` is needed. ``gymnasium.make(env.spec)`` puts one of that length around the environment.
    """

    _spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        if spec is not None:
            kwargs = plain_values(spec.kwargs)
            spec = dataclasses.replace(spec, kwargs=kwargs, max_episode_steps=self.episode_steps)
        self._spec = spec

    @property
    def episode_steps(self) -> int:
        """The most steps of an episode."""
        raise NotImplementedError  # of the abstract property
