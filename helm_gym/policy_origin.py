"""What a policy was made for, as its run folder, card or ONNX file says it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from helm_gym.errors import IncompatibleError, InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.ranges import check_name


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a policy was made for; it fits nothing else.

    Attributes:
        layout_version: of the observation.
        requests, window: the clock, in requests.
        profile, profile_fingerprint: the machine and the model.
    """

    layout_version: int
    requests: int
    window: int
    profile: str
    profile_fingerprint: str

    @classmethod
    def of(cls, layout: ObservationLayout) -> Origin:
        profile = layout.profile
        clock = profile.interval
        return cls(layout.version, clock.requests, clock.window, profile.name, profile.fingerprint)

    @classmethod
    def read(cls, facts: Mapping[str, Any], what: str) -> Origin:
        """From JSON or an ONNX file's metadata, whose values are all texts.

        Raises:
            InvalidInputError: a key is missing or of another type.
        """
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            value = facts.get(field.name)
            if not field.name.startswith("profile"):
                value = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) else value
            if type(value) is not (str if field.name.startswith("profile") else int):
                raise InvalidInputError(f"{what} does not say its {field.name}; HELM-Gym did not make it.")
            values[field.name] = value
        check_name(f"{what}: its profile's name", values["profile"])
        return cls(**values)

    def check(self, layout: ObservationLayout, what: str) -> None:
        """Raises IncompatibleError, saying what differs, unless observations of ``layout`` are what it was made for."""
        here = Origin.of(layout)
        differs = [
            f"{name} {theirs} there and {ours} here"
            for name, theirs, ours in (
                ("observation layout", self.layout_version, here.layout_version),
                ("requests an interval", self.requests, here.requests),
                ("requests a window", self.window, here.window),
                ("profile", f"'{self.profile}'", f"'{here.profile}'"),
                ("profile's fingerprint", self.profile_fingerprint, here.profile_fingerprint),
            )
            if theirs != ours
        ]
        if self.profile_fingerprint == here.profile_fingerprint:  # a name alone decides nothing
            differs = [text for text in differs if not text.startswith("profile ")]
        if differs:
            raise IncompatibleError(f"{what} was made for something else: {', '.join(differs)}; train one for this.")
