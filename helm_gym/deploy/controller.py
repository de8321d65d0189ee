"""The controller of a service's nodes: which policy decides on which node, and everything that may change that."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import threading
import time
import weakref
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from helm_gym import profile as profiles
from helm_gym.deploy.assignment import Assignment
from helm_gym.deploy.installing import Replay, install, install_file, try_out
from helm_gym.deploy.keeping import Folder, Memory
from helm_gym.deploy.node import Decision, Node, Record
from helm_gym.deploy.settings import FALLBACK, REASONS, ControlSettings, Mode, check_mode
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Policy
from helm_gym.profile import Profile

log = logging.getLogger("helm_gym.deploy")


class Controller:
    """A policy in control of ``nodes`` nodes, each of which decides once an interval of its own requests.

    ``decide`` may be called from a thread a node; everything else from any thread.

    Args:
        profile: the machine and the model, or its name: its clock, pool and scales are the policy's.
        policy: the path of an ``.onnx`` file, a registered name such as ``pid``, or a policy.
        mode: of all nodes at first; ``canary`` is set for some of them by ``set_mode``.
        state_folder: where policies, modes and adaptation state survive a restart; nothing does where None. What is
            there goes on, unless ``policy`` is another one than the controller was started with then; and so do modes,
            unless ``mode`` is another.

    Raises:
        UnknownNameError, RefusedError, InvalidInputError: see ``install``; or settings that leave no split.
        HelmError: another process has the state folder.
    """

    def __init__(
        self,
        profile: Profile | str,
        policy: str | pathlib.Path | Policy,
        nodes: int = 1,
        mode: str = "shadow",
        settings: ControlSettings | None = None,
        state_folder: str | pathlib.Path | None = None,
    ):
        self.profile = profiles.load(profile) if isinstance(profile, str) else profile
        self.settings = settings or ControlSettings()
        self.layout = ObservationLayout(self.profile)
        if nodes < 1:
            raise InvalidInputError(f"A controller needs at least one node, not {nodes}.")
        first = check_mode(mode)
        if first == "canary":
            raise InvalidInputError("Some nodes are on trial, never all; set_mode('canary', node) says which.")
        self._lock = threading.RLock()
        self._refused = 0
        self._notes: list[str] = []
        self._killed = self._closed = False
        fallback, given = install(FALLBACK, self.layout), install(policy, self.layout)
        self._nodes = [Node(self.layout, self.settings, fallback) for _ in range(nodes)]
        for node in self._nodes:
            node.mode = first
        if self.settings.slo_ms > 0:
            self.scale(self.settings.slo_ms)
        window = self.profile.interval.window // self.profile.interval.requests
        self._policies = Assignment(self._nodes, given, self.settings, window)
        self._folder = None if state_folder is None else Folder(pathlib.Path(state_folder))
        self._memory: Memory | None = None
        try:
            if self._folder is not None:
                self._memory = Memory(self._folder, self._policies, self.layout, first, self._note)
                self._set_killed(self._folder.killed)
                self._memory.take_up(self.settings.state_age_s)
            try_out(self._policies.current, self.layout, [], self.settings.deadline_s)
            try_out(fallback, self.layout, [], max(1.0, self.settings.deadline_s))
            self._policies.assign()
            self.save()
        except BaseException:
            self._release()
            raise
        self._wake = threading.Event()
        watchdog = threading.Thread(target=_watch, args=(weakref.ref(self), self._wake), name="watchdog", daemon=True)
        watchdog.start()

    def decide(
        self,
        node: int,
        telemetry: NDArray[np.float64] | None,
        now_s: float | None = None,
        *,
        measured_s: float | None = None,
        requests: int | None = None,
        errors: int = 0,
        memory_bytes: float | None = None,
    ) -> Decision:
        """What a node is to do, once an interval. It returns within about the deadline, and does not raise.

        Args:
            node: its number.
            telemetry: float64 (WIDTH,), its last interval's row of ``helm_gym.telemetry``'s columns; None where there
                is none. It is copied.
            now_s: by a monotonic clock (``time.monotonic``, which is read where not given); a clock that jumps costs
                no more than a cooldown.
            measured_s: when the interval ended, by the same clock; ``now_s`` where not given.
            requests: in the interval. 0: the node was idle. Where not given, it was if its columns of service time
                and sojourn are 0.
            errors: among them, for trials.
            memory_bytes: that the node takes, for trials.

        Raises:
            InvalidInputError: no such node.
        """
        if not 0 <= node < len(self._nodes):
            self._refuse_node(node)
        of = self._nodes[node]
        decision = of.decide(telemetry, time.monotonic() if now_s is None else now_s, measured_s, requests)
        if of.fell is not None:
            self._note(f"Node {node}: {of.fell} failed {self.settings.faults} times in a row; {of.level} takes over.")
            of.fell = None
        if self._policies.trial is not None:
            self._judge(node, self.profile.interval.requests if requests is None else requests, errors, memory_bytes)
        return decision

    def _judge(self, node: int, requests: int, errors: int, memory_bytes: float | None) -> None:
        with self._lock:
            trial = self._policies.trial
            if trial is None:
                return
            worse = trial.add(node, requests, errors, memory_bytes)
            if node in trial.canaries and self._nodes[node].level != "policy":
                reason, why = "canary_faults", f"its policy failed on node {node}"
            elif worse is not None:
                reason, why = "canary_worse", f"{worse} is worse"
            else:
                return
            for k in trial.canaries:
                self._nodes[k].interventions[reason] += 1
            self._policies.roll_back()  # the watchdog writes it down: this is a node's thread
        self._note(f"The trial on nodes {list(trial.canaries)} was rolled back: {why}.")

    def _refuse_node(self, node: int) -> NoReturn:
        raise InvalidInputError(f"There is no node {node}; there are {len(self._nodes)}, from 0 on.")

    def mode(self, node: int) -> Mode:
        """``off``, ``shadow``, ``canary`` or ``active``."""
        return self._nodes[node].mode

    def set_mode(self, mode: str, node: int | None = None) -> None:
        """Sets the mode of a node, or of all.

        ``canary``: on trial. A policy that is swapped in while a node is on trial runs on the nodes on trial alone,
        until ``promote``, or until it is rolled back.

        Raises:
            InvalidInputError: no such mode or node, or no node would be left to compare those on trial with.
        """
        wanted = check_mode(mode)
        if node is not None and not 0 <= node < len(self._nodes):
            self._refuse_node(node)
        with self._lock:
            self._policies.set_mode(wanted, range(len(self._nodes)) if node is None else [node])
        self.save()

    def swap(self, path: str | pathlib.Path, sha256: str | None = None) -> Replay:
        """Puts an ONNX file in place of the policy, without a restart; the former one is kept for ``roll_back``.

        It is read and compared with its checksum, checked as ``helm-gym export`` does (layout, clock, profile,
        operators), warmed up, and tried on each node's recorded observations; only then do nodes change over, each
        between two of its decisions. Where the file is the same, adaptation state goes on.

        Args:
            path: an ``.onnx`` file.
            sha256: that it must have.

        Returns:
            What it did on the recorded observations.

        Raises:
            RefusedError: it may not be swapped in; everything goes on as before.
        """
        try:
            installed = install_file(pathlib.Path(path), self.layout, sha256)
            recorded = [node.recorded() for node in self._nodes]
            replay = try_out(installed, self.layout, recorded, self.settings.deadline_s)
        except HelmError as error:
            self._refused += 1
            self._note(f"{REASONS['swap_refused']} {error}")
            raise
        with self._lock:
            self._policies.install(installed)
        self._note(f"Policy {installed.name} ({installed.identity[:12]}) was swapped in.")
        self.save()
        return replay

    def roll_back(self) -> None:
        """Ends a trial, or else puts the former policy in place of the present one.

        Nodes that were on trial go on with the present policy if another node is active, and else into shadow and
        back to the split at which they came.

        Raises:
            InvalidInputError: there is no trial and no former policy.
        """
        with self._lock:
            self._policies.roll_back()
        self._tell_present("Rolled back to policy")

    def promote(self) -> None:
        """Ends a trial well: its policy becomes that of all nodes, and the nodes on trial are active.

        Raises:
            InvalidInputError: no node is on trial.
        """
        with self._lock:
            self._policies.promote()
        self._tell_present("Promoted policy")

    def _tell_present(self, what: str) -> None:
        present = self._policies.current
        self._note(f"{what} {present.name} ({present.identity[:12]}).")
        self.save()

    def kill(self) -> None:
        """Stops all control at once: nodes go to the static split, or hold theirs, until ``revive``."""
        self._set_killed(True)
        self._note("The kill switch was turned on.")

    def revive(self) -> None:
        """Turns the kill switch off, and lets the policy decide again where something safer had taken over."""
        self._set_killed(False)
        for node in self._nodes:
            node.calm()
            node.look_away()
        self._note("The kill switch was turned off, and all policies decide again.")

    def _set_killed(self, on: bool) -> None:
        with self._lock:
            self._killed = on
            for node in self._nodes:
                node.killed = on
            if self._folder is not None:
                self._folder.kill(on)

    def target(self, node: int) -> float | None:
        """The split that a node was last told, also before the last restart; None where none is known."""
        return self._nodes[node].target

    def history(self, node: int) -> list[Record]:
        """The last decisions of a node, the oldest first: in shadow, what it would have done."""
        return list(self._nodes[node].history)

    def scale(self, slo_ms: float) -> None:
        """Has latencies be scaled by this SLO, where it is not the profile's."""
        for node in self._nodes:
            node.scale(slo_ms)

    def status(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        with self._lock:
            total = dict.fromkeys(REASONS, 0) | {"swap_refused": self._refused}
            for node in self._nodes:
                for reason, count in dict(node.interventions).items():
                    total[reason] += count
            of = self._policies
            return {
                "profile": self.profile.name,
                "policy": of.current.facts(),
                "former": None if of.former is None else of.former.facts(),
                "candidate": None if of.candidate is None else of.candidate.facts(),
                "killed": self._killed,
                "interventions": {reason: count for reason, count in total.items() if count},
                "trial": None if of.trial is None else of.trial.facts(),
                "nodes": [node.facts() for node in self._nodes],
                "notes": self._notes[-20:],
            }

    def _note(self, text: str) -> None:
        log.warning("%s", text)
        self._notes = [*self._notes[-99:], text]

    def save(self) -> None:
        """Writes the state folder, if there is one; that is done every ``save_s`` anyhow."""
        if self._memory is not None:
            with self._lock:
                self._memory.save()

    def _look(self, save: bool) -> None:
        """What the watchdog does as often as the deadline is long, and now and then."""
        now, deadline_s = time.perf_counter(), self.settings.deadline_s
        for node in self._nodes:
            runner = node.runner
            if runner is not None and runner.started and now - runner.started > deadline_s:
                runner.cut_off()
        if not save or self._folder is None:
            return
        if self._folder.killed and not self._killed:
            self._set_killed(True)
            self._note("The kill switch was turned on by its file.")
        try:
            self.save()
        except HelmError as error:  # a full disk is no reason to stop deciding
            self._note(f"The state folder could not be written: {error}")

    def _release(self) -> None:
        if self._folder is not None:
            self._folder.close()

    def close(self) -> None:
        """Writes the state folder and gives it free."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        with contextlib.suppress(HelmError):
            self.save()
        for node in self._nodes:
            if node.runner is not None:
                node.runner.stop()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _watch(controller: weakref.ref[Controller], wake: threading.Event) -> None:
    """Cuts decisions off that take too long, saves now and then, and ends with its controller."""
    saved = time.monotonic()
    while True:
        alive = controller()
        if alive is None or alive._closed:
            return
        save = time.monotonic() - saved >= alive.settings.save_s
        alive._look(save)
        if save:
            saved = time.monotonic()
        pause_s = min(max(alive.settings.deadline_s, 0.001), 0.25)
        del alive
        if wake.wait(pause_s):
            return
