"""A real Chromium before a real installation: what the tests and the screenshots of the portal share.

Chromium is Debian's package, driven by Playwright, which downloads nothing. The certificate of a test's node
comes from a CA that no browser knows, so it is not verified here; that agents show it is tested elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from castling.testing.cluster import Cluster

__all__ = ["CHROMIUM", "PASSWORD", "add_users", "chromium", "log_in", "look"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PASSWORD = "a knight and a rook"
USERS = {"vera": "viewer", "olga": "operator", "anna": "admin"}
#: for the longest wait of a page, ms: other tests may have the processors
PATIENCE_MS = 60_000


def add_users(cluster: Cluster, node: str) -> None:
    for name, role in USERS.items():
        arguments = ("user", "add", name, "--role", role, "--password-file", "-")
        cluster.cli(node, *arguments, given=PASSWORD + "\n")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    assert CHROMIUM is not None
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def look(browser: Browser, cluster: Cluster, node: str, **more: Any) -> Iterator[Page]:
    """A page of the node's portal, in a context of its own. What scripts complain of fails the test."""
    context: BrowserContext = browser.new_context(
        base_url=f"https://127.0.0.1:{cluster.api[node]}", ignore_https_errors=True, **more
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if "Content Security Policy" in said.text else None,
    )
    try:
        yield page
    finally:
        context.close()
    assert complaints == []


def log_in(page: Page, name: str) -> None:
    """By keyboard alone: the field has the focus when the page is there."""
    page.goto("/login")
    page.keyboard.type(name)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("/")
