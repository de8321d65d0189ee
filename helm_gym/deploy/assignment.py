"""Which policy decides on which node, by the nodes' modes: the present one, the one on trial, and what went before."""

from __future__ import annotations

import time
from collections.abc import Sequence

from helm_gym.deploy.canary import Trial
from helm_gym.deploy.installing import Installed
from helm_gym.deploy.node import Node
from helm_gym.deploy.running import Runner
from helm_gym.deploy.settings import ControlSettings, Mode
from helm_gym.errors import InvalidInputError


class Assignment:
    """Its owner's lock is held wherever something changes.

    Attributes:
        current: the policy of all nodes but those on trial.
        former: that which ``roll_back`` goes back to.
        candidate: that of the nodes on trial; where None they run the present one.
        trial: None where no node is on trial.
    """

    def __init__(self, nodes: Sequence[Node], current: Installed, settings: ControlSettings, window: int):
        self.nodes, self.current = nodes, current
        self.former: Installed | None = None
        self.candidate: Installed | None = None
        self.trial: Trial | None = None
        self._settings, self._window = settings, window
        self._shelf: dict[int, tuple[str, Runner, float]] = {}  # node -> identity, use and time of its last policy

    @property
    def on_trial(self) -> list[int]:
        return [k for k, node in enumerate(self.nodes) if node.mode == "canary"]

    def assign(self) -> None:
        """Gives each node the policy that its mode says, and starts a trial where one is due."""
        canaries = self.on_trial
        for k, node in enumerate(self.nodes):
            due = self.candidate if k in canaries and self.candidate is not None else self.current
            if node.installed is not due:
                self._give(k, due)
        self.trial = Trial(self.nodes, canaries, self._settings, self._window) if canaries else None

    def _give(self, k: int, installed: Installed) -> None:
        """Has a node follow a policy; its adaptation state goes on where it is of the same one and young enough."""
        node, now = self.nodes[k], time.monotonic()
        old, use = node.installed, node.runner
        runner = installed.runner()
        if use is not None and old is not None:
            if old.identity == installed.identity:
                runner.state = use.state.copy()
            else:
                identity, kept, since = self._shelf.get(k, ("", use, now))
                if identity == installed.identity and now - since <= self._settings.state_age_s:
                    runner.state = kept.state.copy()
                self._shelf[k] = (old.identity, use, now)
            use.stop()
        node.follow(installed, runner)

    def set_mode(self, mode: Mode, chosen: Sequence[int]) -> None:
        """See ``Controller.set_mode``."""
        left = [k for k, node in enumerate(self.nodes) if k not in chosen and node.mode != "canary"]
        if mode == "canary" and not left:
            raise InvalidInputError("No node would be left to compare those on trial with; leave one out.")
        for k in chosen:
            node = self.nodes[k]
            if node.mode == "off":
                node.look_away()
            if mode == "canary" and node.mode != "canary":
                node.entered = node.target
            if mode in ("canary", "active"):
                node.restoring = None
            node.mode = mode
            node.calm()
        if not self.on_trial:
            self.candidate = None
        self.assign()

    def install(self, installed: Installed) -> None:
        """Puts a policy in place: of the nodes on trial where there are some, else of all."""
        if self.on_trial:
            self.candidate = installed
        else:
            if installed.identity != self.current.identity:
                self.former = self.current
            self.current = installed
        self.assign()

    def roll_back(self) -> None:
        """See ``Controller.roll_back``."""
        canaries = self.on_trial
        if canaries:
            active = any(node.mode == "active" for node in self.nodes)
            for k in canaries:
                self.nodes[k].mode = "active" if active else "shadow"
                self.nodes[k].restoring = None if active else self.nodes[k].entered
            self.candidate = None
        elif self.former is not None:
            self.current, self.former = self.former, self.current
        else:
            raise InvalidInputError("There is no former policy to roll back to.")
        self.assign()

    def promote(self) -> None:
        """See ``Controller.promote``."""
        canaries = self.on_trial
        if not canaries:
            raise InvalidInputError("No node is on trial, so there is nothing to promote.")
        if self.candidate is not None and self.candidate.identity != self.current.identity:
            self.former, self.current = self.current, self.candidate
        self.candidate = None
        for k in canaries:
            self.nodes[k].mode = "active"
        self.assign()
