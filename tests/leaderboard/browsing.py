"""A real browser, headless, on a desk and on a phone, without JavaScript; and pictures of what it shows.

Pictures go to HELM_GYM_SCREENSHOTS, or to tests/artifacts, which CI keeps and git ignores.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES = {"desk": (1280, 900), "phone": (390, 844)}
_FOLDER = pathlib.Path(__file__).parents[1] / "artifacts"


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def take(opened: Any, size: str, address: str, paths: Mapping[str, str], prefix: str = "") -> None:
    """Opens each path, pictures it, and asserts that it reads well at this width."""
    folder = pathlib.Path(os.environ.get("HELM_GYM_SCREENSHOTS") or _FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    width, height = SIZES[size]
    context = opened.new_context(viewport={"width": width, "height": height}, java_script_enabled=False)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    for name, path in paths.items():
        assert page.goto(address + path).status == 200
        page.screenshot(path=folder / f"{prefix}{name}-{size}.png", full_page=True)
        # Wide tables scroll within their frame; the page itself does not.
        assert page.locator("main").bounding_box()["width"] <= width
        assert page.locator("header.top").bounding_box()["width"] <= width
        for box in page.locator("main > *").all():
            assert (box.bounding_box() or {"width": 0})["width"] <= width, (name, box)
    assert complaints == []
    context.close()
