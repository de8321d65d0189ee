"""The client of the control plane: what `helm-gym status`, `swap` and `control` say to a service."""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import Any

import httpx2 as httpx

from helm_gym import files
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.policies.onnx_check.rules import MAX_FILE_BYTES
from helm_gym.text import plain

URL = "http://127.0.0.1:8081"
TOKEN = "HELM_GYM_CONTROL_TOKEN"  # the environment variable


class ControlClient:
    """A service's control plane by its address.

    Raises:
        InvalidInputError: an address that is none.
    """

    def __init__(self, url: str = URL):
        held = os.environ.get(TOKEN, "")
        self._headers = {"Authorization": f"Bearer {held}"} if held else {}
        self.url = url
        try:
            self._open().close()
        except (httpx.InvalidURL, UnicodeEncodeError, ValueError) as error:
            raise InvalidInputError(f"--url {url} is no address; write {URL}.") from error

    def _open(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self._headers, timeout=60.0, trust_env=False)

    def status(self) -> dict[str, Any]:
        return self._ask("GET", "status")

    def swap(self, path: pathlib.Path) -> dict[str, Any]:
        """Hands an ONNX file in, with its checksum."""
        content = files.read_bytes(path, "Policy", MAX_FILE_BYTES)
        query = {"sha256": hashlib.sha256(content).hexdigest()}
        headers = {"Content-Type": "application/octet-stream"}
        return self._ask("POST", "swap", content=content, params=query, headers=headers)

    def do(self, what: str, **given: Any) -> dict[str, Any]:
        """``mode``, ``kill``, ``revive``, ``rollback`` or ``promote``. Returns the controller's status afterwards."""
        return self._ask("POST", what, json=given)

    def _ask(self, method: str, what: str, **more: Any) -> dict[str, Any]:
        try:
            with self._open() as client:
                answer = client.request(method, f"/control/{what}", **more)
            content: Any = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise HelmError(
                f"No control plane answers at {self.url}: {plain(str(error)) or 'no JSON came'}."
            ) from error
        if answer.is_success and isinstance(content, dict):
            return content
        told = content.get("error") if isinstance(content, dict) else None
        text = str(told.get("sentence", "")) if isinstance(told, dict) else ""
        raise HelmError(plain(text) or f"The control plane at {self.url} answered {answer.status_code}.")
