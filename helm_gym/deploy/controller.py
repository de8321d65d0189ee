"""The controller of a service's nodes: which policy decides on which node, and everything that may change that."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import threading
import time
import weakref
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from helm_gym import profile as profiles
from helm_gym.deploy import keeping
from helm_gym.deploy.canary import Trial
from helm_gym.deploy.installing import Installed, Replay, install, install_bytes, install_file, try_out
from helm_gym.deploy.node import Decision, Node, Record
from helm_gym.deploy.running import Runner
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
        self._current = install(policy, self.layout)
        self._given = self._current.identity
        self._given_mode = first
        self._former: Installed | None = None
        self._candidate: Installed | None = None
        self._shelf: dict[int, tuple[str, Runner, float]] = {}  # node -> identity, use and time of the former policy
        fallback = install(FALLBACK, self.layout)
        self._nodes = [Node(self.layout, self.settings, fallback) for _ in range(nodes)]
        self._trial: Trial | None = None
        self._starts: dict[int, float | None] = {}  # node on trial -> the split at which it went into it
        self._swaps: dict[str, int] = {}
        self._notes: list[str] = []
        self._killed = self._closed = False
        if self.settings.slo_ms > 0:
            self.scale(self.settings.slo_ms)
        for node in self._nodes:
            node.mode = first
        self._folder = None if state_folder is None else keeping.Folder(pathlib.Path(state_folder))
        try:
            kept = self._take_up() if self._folder is not None else None
            try_out(self._current, self.layout, [], self.settings.deadline_s)
            try_out(fallback, self.layout, [], max(1.0, self.settings.deadline_s))
        except BaseException:
            self._release()
            raise
        self._assign()
        if kept is not None:
            self._restore(kept)
        self.save()
        self._wake = threading.Event()
        watcher = threading.Thread(target=_watch, args=(weakref.ref(self), self._wake), name="watchdog", daemon=True)
        watcher.start()

    # --- deciding ---

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
            IndexError: no such node.
        """
        if now_s is None:
            now_s = time.monotonic()
        of = self._nodes[node]
        decision = of.decide(telemetry, now_s, measured_s, requests)
        if of.fell is not None:
            self._note(f"Node {node}: {of.fell} failed {self.settings.faults} times in a row; {of.level} takes over.")
            of.fell = None
        if self._trial is not None:
            self._judge(node, self.profile.interval.requests if requests is None else requests, errors, memory_bytes)
        return decision

    def _judge(self, node: int, requests: int, errors: int, memory_bytes: float | None) -> None:
        with self._lock:
            trial = self._trial
            if trial is None:
                return
            worse = trial.add(node, requests, errors, memory_bytes)
            if node in trial.canaries and self._nodes[node].level != "policy":
                self._end_trial("canary_faults", node, "its policy failed")
            elif worse is not None:
                self._end_trial("canary_worse", trial.canaries[0], f"{worse} is worse")

    def _end_trial(self, reason: str, node: int, why: str) -> None:
        assert self._trial is not None
        facts = self._trial.facts()
        self._nodes[node].interventions[reason] += 1
        self._note(f"The trial on nodes {facts['canaries']} was rolled back: {why}.")
        self._leave_trial()  # the watchdog writes it down: this is a node's thread

    # --- modes ---

    def mode(self, node: int) -> Mode:
        return self._nodes[node].mode

    def set_mode(self, mode: str, node: int | None = None) -> None:
        """Sets the mode of a node, or of all.

        ``canary``: on trial. A policy that is swapped in while a node is on trial runs on nodes on trial alone, until
        ``promote``, or until it is rolled back.

        Raises:
            InvalidInputError: no such mode or node, or no node would be left to compare those on trial with.
        """
        wanted = check_mode(mode)
        with self._lock:
            if node is not None and not 0 <= node < len(self._nodes):
                raise InvalidInputError(f"There is no node {node}; there are {len(self._nodes)}.")
            chosen = range(len(self._nodes)) if node is None else [node]
            left = [k for k, n in enumerate(self._nodes) if k not in chosen and n.mode != "canary"]
            if wanted == "canary" and not left:
                raise InvalidInputError("No node would be left to compare those on trial with; leave one out.")
            for k in chosen:
                of = self._nodes[k]
                if of.mode == "off" and wanted != "off":
                    of.look_away()
                if wanted in ("canary", "active"):
                    of.restoring = None
                of.mode = wanted
                of.calm()
            if not self._canaries():
                self._candidate = None
            self._assign()
        self.save()

    def _canaries(self) -> list[int]:
        return [k for k, node in enumerate(self._nodes) if node.mode == "canary"]

    def _assign(self) -> None:
        """Gives each node the policy that its mode says, and starts a trial where one is due."""
        for k, node in enumerate(self._nodes):
            due = self._candidate if node.mode == "canary" and self._candidate is not None else self._current
            if node.installed is not due:
                self._give(k, due)
        canaries = self._canaries()
        window = self.profile.interval.window // self.profile.interval.requests
        self._trial = Trial(self._nodes, canaries, self.settings, window) if canaries else None
        if self._trial is not None:
            for k in canaries:
                self._starts.setdefault(k, self._nodes[k].target)
        else:
            self._starts.clear()

    def _give(self, k: int, installed: Installed) -> None:
        """Has a node follow a policy; its adaptation state goes on where it is of the same one and young enough."""
        node, now = self._nodes[k], time.monotonic()
        old, use = node.installed, node.runner
        runner = installed.runner()
        if use is not None and old is not None:
            if old.identity == installed.identity:
                runner.state = use.state.copy()
            else:
                kept = self._shelf.get(k)
                if kept is not None and kept[0] == installed.identity and now - kept[2] <= self.settings.state_age_s:
                    runner.state = kept[1].state.copy()
                self._shelf[k] = (old.identity, use, now)
            use.stop()
        node.follow(installed, runner)

    # --- policies ---

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
            self._count("swap_refused", str(error))
            raise
        with self._lock:
            if self._canaries():
                self._candidate = installed
            else:
                if installed.identity != self._current.identity:
                    self._former = self._current
                self._current = installed
            self._assign()
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
            if self._canaries():
                self._leave_trial()
            elif self._former is not None:
                self._current, self._former = self._former, self._current
                self._assign()
            else:
                raise InvalidInputError("There is no former policy to roll back to.")
        self._note(f"Rolled back to policy {self._current.name} ({self._current.identity[:12]}).")
        self.save()

    def promote(self) -> None:
        """Ends a trial well: its policy becomes that of all nodes, and the nodes on trial are active.

        Raises:
            InvalidInputError: no node is on trial.
        """
        with self._lock:
            canaries = self._canaries()
            if not canaries:
                raise InvalidInputError("No node is on trial, so there is nothing to promote.")
            if self._candidate is not None and self._candidate.identity != self._current.identity:
                self._former, self._current = self._current, self._candidate
            self._candidate = None
            for k in canaries:
                self._nodes[k].mode = "active"
            self._assign()
        self._note(f"Policy {self._current.name} ({self._current.identity[:12]}) was promoted.")
        self.save()

    def _leave_trial(self) -> None:
        active = any(node.mode == "active" for node in self._nodes)
        for k in self._canaries():
            self._nodes[k].mode = "active" if active else "shadow"
            if not active:
                self._nodes[k].restoring = self._starts.get(k)
        self._candidate = None
        self._assign()

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
        self._note("The kill switch was turned off.")

    def _set_killed(self, on: bool) -> None:
        with self._lock:
            self._killed = on
            for node in self._nodes:
                node.killed = on
            if self._folder is not None:
                self._folder.kill(on)

    # --- what it tells ---

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
            total = dict.fromkeys(REASONS, 0)
            for counts in (self._swaps, *(node.interventions for node in self._nodes)):
                for reason, count in counts.items():
                    total[reason] += count
            former, candidate = self._former, self._candidate
            return {
                "profile": self.profile.name,
                "policy": self._current.facts(),
                "former": None if former is None else former.facts(),
                "candidate": None if candidate is None else candidate.facts(),
                "killed": self._killed,
                "interventions": {reason: count for reason, count in total.items() if count},
                "trial": None if self._trial is None else self._trial.facts(),
                "nodes": [node.facts() for node in self._nodes],
                "notes": self._notes[-20:],
            }

    def _count(self, reason: str, why: str) -> None:
        self._swaps[reason] = self._swaps.get(reason, 0) + 1
        self._note(f"{REASONS[reason]} {why}")

    def _note(self, text: str) -> None:
        log.warning("%s", text)
        self._notes = [*self._notes[-99:], text]

    # --- what survives ---

    def save(self) -> None:
        """Writes the state folder; it is written every ``save_s`` anyhow."""
        with self._lock:
            if self._folder is None:
                return
            slots = {"current": self._current, "former": self._former, "candidate": self._candidate}
            contents = {p.identity: p.content for p in slots.values() if p is not None and p.content is not None}
            kept = {
                name: None if p is None else keeping.KeptPolicy(name=p.name[:200], sha256=p.sha256)
                for name, p in slots.items()
            }
            self._folder.write(
                keeping.Kept(
                    given=self._given[:200],
                    given_mode=self._given_mode,
                    fingerprint=self.profile.fingerprint,
                    saved_at=time.time(),
                    nodes=[_kept(node) for node in self._nodes],
                    **kept,  # type: ignore[arg-type]  # current is never None
                ),
                contents,
            )

    def _take_up(self) -> keeping.Kept | None:
        """Opens the policies of the state folder; what was kept, where it goes on."""
        assert self._folder is not None
        kept, damage = self._folder.read()
        if self._folder.killed:
            self._set_killed(True)
        if damage:
            self._note(damage)
        if kept is None:
            return None
        if kept.fingerprint != self.profile.fingerprint or kept.given != self._given[:200]:
            self._note("The state folder is of another profile or was started with another policy: a new start.")
            return None
        opened: dict[str, Installed | None] = {}
        for name in ("current", "former", "candidate"):
            told: keeping.KeptPolicy | None = getattr(kept, name)
            try:
                opened[name] = None if told is None else self._open_kept(told)
            except HelmError as error:
                self._note(f"The {name} policy of the state folder was not taken up: {error}")
                opened[name] = None
        if opened["current"] is not None:
            self._current = opened["current"]
        self._former, self._candidate = opened["former"], opened["candidate"]
        return kept

    def _open_kept(self, told: keeping.KeptPolicy) -> Installed:
        assert self._folder is not None
        if told.sha256 is not None:
            return install_bytes(self._folder.policy(told.sha256), self.layout, told.name)
        if self._given.startswith(("name:", "object:")) and told.name == self._current.name:
            return self._current
        return install(told.name, self.layout)

    def _restore(self, kept: keeping.Kept) -> None:
        """Modes, targets and adaptation state of the last run, where they are young enough."""
        age = time.time() - kept.saved_at
        young = 0.0 <= age <= self.settings.state_age_s  # of a clock that went back nothing is known
        if len(kept.nodes) == len(self._nodes):
            for node, of in zip(self._nodes, kept.nodes, strict=True):
                node.target = of.target
                if kept.given_mode == self._given_mode:
                    node.mode = of.mode
        self._assign()
        resumed = 0
        for node, of in zip(self._nodes, kept.nodes, strict=False):
            if not young or of.state is None or node.installed is None or of.identity != node.installed.identity[:200]:
                continue
            assert node.runner is not None
            state = keeping.unpacked(of.state, node.runner.state)
            if state is not None:
                node.runner.state = state
                resumed += 1
        self._note(f"Taken up from the state folder: policy {self._current.name}, the state of {resumed} nodes.")

    # --- the watchdog and the end ---

    def _look(self, since_save_s: float) -> bool:
        """What the watchdog does now and then; whether it saved."""
        now = time.perf_counter()
        for node in self._nodes:
            runner = node.runner
            if runner is not None and runner.started and now - runner.started > self.settings.deadline_s:
                runner.cut_off()
        if self._folder is None or since_save_s < self.settings.save_s:
            return False
        if self._folder.killed and not self._killed:
            self._set_killed(True)
            self._note("The kill switch was turned on by its file.")
        try:
            self.save()
        except HelmError as error:  # a full disk is no reason to stop deciding
            self._note(f"The state folder could not be written: {error}")
        return True

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


def _kept(node: Node) -> keeping.KeptNode:
    identity = None if node.installed is None else node.installed.identity[:200]
    state = None
    if node.runner is not None and node.runner.state.size:
        while True:  # of one moment: a decision may be under way in another thread
            before = node.decisions
            copied = node.runner.state.copy()
            if node.decisions - before < 2:
                break
        state = keeping.packed(copied)
    return keeping.KeptNode(mode=node.mode, target=node.target, identity=identity, state=state)


def _watch(controller: weakref.ref[Controller], wake: threading.Event) -> None:
    """Cuts decisions off that take too long, saves now and then, and ends with its controller."""
    saved = time.monotonic()
    while True:
        alive = controller()
        if alive is None or alive._closed:
            return
        if alive._look(time.monotonic() - saved):
            saved = time.monotonic()
        pause = alive.settings.deadline_s
        del alive
        if wake.wait(min(max(pause, 0.001), 0.25)):
            return
