"""The client: what the commands say to a server."""

from __future__ import annotations

import base64
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx2 as httpx

from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.policies.onnx_check import read_file
from helm_gym.text import plain, shown
from leaderboard.submissions import FINAL, check_write_up

URL = "http://127.0.0.1:8484"
TOKEN = "HELM_GYM_TOKEN"  # the environment variable
_WAIT_S = 1.0
_PATIENCE_S = 60.0  # that a server may be away while it is waited for


class Client:
    """A board by its address.

    Args:
        url: of the server.
        token: of the account; that of the environment where not given.

    Raises:
        InvalidInputError: an address that is none.
    """

    def __init__(self, url: str = URL, token: str | None = None):
        held = token or os.environ.get(TOKEN, "")
        headers = {"Authorization": f"Bearer {held}"} if held else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=60.0, trust_env=False)
        except (httpx.InvalidURL, UnicodeEncodeError, ValueError) as error:
            raise InvalidInputError(f"--url {url} is no address; write {URL}.") from error
        self.url = url

    def close(self) -> None:
        self._http.close()

    def submit(
        self,
        paths: Sequence[pathlib.Path],
        name: str,
        track: str,
        tasks: Sequence[str] = (),
        write_up: Mapping[str, Any] | None = None,
    ) -> str:
        """Hands policies in; returns the entry's id. Where the connection breaks it is sent again: it is one entry.

        Raises:
            HelmError: a file cannot be read, or the server refuses it; its reason is told.
        """
        files = [base64.b64encode(read_file(path)).decode() for path in paths]
        given: dict[str, Any] = {"name": name, "track": track, "tasks": list(tasks), "files": files}
        given["write_up"] = check_write_up(write_up or {})
        until, sent = time.monotonic() + _PATIENCE_S, False
        while True:
            try:
                return str(self._ask("POST", "/api/v1/entries", json=given)["entry"])
            except _AwayError as error:
                sent = sent or error.reached
                if not sent or time.monotonic() > until:
                    raise
            time.sleep(_WAIT_S)

    def get(self, path: str, **query: Any) -> Any:
        return self._ask("GET", f"/api/v1/{path}", params=query)

    def cancel(self, entry: str) -> None:
        self._ask("DELETE", f"/api/v1/entries/{entry}")

    def file(self, digest: str) -> bytes:
        return self._send("GET", f"/api/v1/files/{digest}").content

    def wait(self, entry: str, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Until an entry is finished; a server that is away for a while is waited for.

        Raises:
            HelmError: the server stays away.
        """
        away_since: float | None = None
        while True:
            try:
                found: dict[str, Any] = self.get(f"entries/{entry}")
                away_since = None
            except _AwayError:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > _PATIENCE_S:
                    raise
                time.sleep(_WAIT_S)
                continue
            tell(found)
            if found["state"] in FINAL:
                return found
            time.sleep(_WAIT_S)

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        try:
            return self._send(method, path, **request).json()
        except ValueError as error:
            raise HelmError(f"{self.url} is no leaderboard: its answer is no JSON; check --url.") from error

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **request)
        except httpx.InvalidURL as error:  # an id of letters that no address has
            raise InvalidInputError(f"{shown(path)} is no address of a board; give an entry's id.") from error
        except httpx.HTTPError as error:
            raise _AwayError(
                f"No leaderboard answers at {self.url} ({plain(str(error))}); start one with `helm-gym leaderboard "
                "serve`, or give --url.",
                reached=not isinstance(error, httpx.ConnectError),
            ) from error
        if answer.is_success:
            return answer
        try:
            told = answer.json()["error"]
            reason, sentence = str(told["reason"]), str(told["sentence"])
        except (ValueError, KeyError, TypeError):
            raise HelmError(f"{self.url} answers with status {answer.status_code}, and no reason.") from None
        raise HelmError(f"{sentence} (reason {reason}, status {answer.status_code})")


class _AwayError(HelmError):
    """Nobody answers.

    Attributes:
        reached: whether somebody was there, and went away before the answer.
    """

    def __init__(self, sentence: str, reached: bool):
        super().__init__(sentence)
        self.reached = reached
