"""An operator before a real browser: log in, look, hold and release, by keyboard alone; and what axe says."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser_cast import log_in, look
from playwright.sync_api import Browser, Page, expect

from castling.testing.cluster import GROUP, Cluster, wait_for

pytestmark = [pytest.mark.real]

PAGES = (
    "/",
    f"/groups/{GROUP}",
    "/audits",
    "/events",
    "/settings",
    f"/groups/{GROUP}/do/stop",
    "/settings/do/add-user",
)


def tab_to(page: Page, text: str) -> None:
    """Press Tab until the focus is on what says `text`; a keyboard must come there within a page's length."""
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("(document.activeElement?.textContent || '').trim()") == text:
            return
    pytest.fail(f"no Tab leads to {text!r}")


def serious(page: Page) -> list[str]:
    """What axe finds of the kinds serious and critical: rule and place."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {node['html'][:120]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def test_an_operator_watches_a_group_and_puts_a_table_on_hold_by_keyboard_alone(
    browser: Browser, cluster: Cluster
) -> None:
    with look(browser, cluster, "east") as page:
        log_in(page, "olga")
        expect(page.locator(".topology.wide .stream.good")).to_have_count(1)
        expect(page.locator("#pulse")).to_have_text("live")
        tab_to(page, GROUP)
        page.keyboard.press("Enter")
        page.wait_for_url(f"/groups/{GROUP}")
        applied = page.locator(".pipeline li", has_text="Applied").locator("strong")
        expect(applied).to_have_text(re.compile(r"^\d+/\d+$"))
        before = applied.inner_text()
        expect(applied).not_to_have_text(before)  # the bank goes on, and the page is live
        expect(page.locator(".pipeline li", has_text="Released").locator("strong")).not_to_have_text(
            "unknown"
        )

        tab_to(page, "Put a table on hold…")
        page.keyboard.press("Enter")
        page.wait_for_url(f"/groups/{GROUP}/do/hold")
        page.locator("[name=part]").focus()
        page.keyboard.type("public.account")
        page.keyboard.press("Enter")
        page.wait_for_url(f"/groups/{GROUP}?done=hold.done")
        expect(page.get_by_role("status").first).to_contain_text("Asked for")
        expect(page.locator("td", has_text="public.account")).to_be_visible()
        expect(page.locator("h1 .badge")).to_have_text("on-hold")
        assert "public.account" in page.goto("/overview.json").text()  # type: ignore[union-attr]

        page.goto("/")
        expect(page.locator(".attention")).to_contain_text("public.account")
        page.goto(f"/groups/{GROUP}")
        tab_to(page, "Release…")
        page.keyboard.press("Enter")
        expect(page.locator("[name=part]")).to_have_value("public.account")
        tab_to(page, "Release")
        page.keyboard.press("Enter")
        page.wait_for_url(f"/groups/{GROUP}?done=release.done")
        expect(page.locator("h1 .badge")).to_have_text("running")


def test_a_broken_link_is_found_in_one_look_and_heals(browser: Browser, cluster: Cluster) -> None:
    with look(browser, cluster, "east") as page:
        log_in(page, "vera")
        expect(page.locator(".attention")).to_have_count(0)
        dead = cluster.kill("apply")
        cluster.proxy.cut()
        try:
            expect(page.locator(".topology.wide .stream:not(.good)")).to_have_count(1)
            expect(page.locator(".attention li")).not_to_have_count(0)
        finally:
            cluster.proxy.heal()
        cluster.wait_for_new("apply", dead)
        wait_for(cluster.is_running, "the group runs again")
        expect(page.locator(".attention")).to_have_count(0)


def test_an_agent_that_is_gone_is_unknown_to_the_other_and_its_pages_say_that_they_are_not_live(
    browser: Browser, cluster: Cluster
) -> None:
    with look(browser, cluster, "east") as page, look(browser, cluster, "west") as there:
        log_in(page, "vera")
        log_in(there, "vera")
        expect(there.locator("#pulse")).to_have_text("live")
        cluster.kill_agent("west")
        try:
            expect(page.locator(".topology.wide .stream.unknown")).to_have_count(1)
            expect(page.locator(".attention")).to_contain_text("west")
            expect(there.locator("#pulse")).to_contain_text("not live")
        finally:
            cluster.start_agent("west")
        expect(page.locator(".topology.wide .stream.good")).to_have_count(1)
        expect(there.locator("#pulse")).to_have_text("live")


def test_a_viewer_is_offered_nothing_to_change(browser: Browser, cluster: Cluster) -> None:
    with look(browser, cluster, "east") as page:
        log_in(page, "vera")
        page.goto(f"/groups/{GROUP}")
        assert page.locator("main a[href*='/do/']").count() == 0
        assert page.goto(f"/groups/{GROUP}/do/stop").status == 403  # type: ignore[union-attr]


def test_logging_out_leads_to_the_login_and_back_leads_nowhere(browser: Browser, cluster: Cluster) -> None:
    with look(browser, cluster, "east") as page:
        log_in(page, "vera")
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url("/login")
        page.goto("/")
        page.wait_for_url("/login")


def test_axe_finds_nothing_serious(browser: Browser, cluster: Cluster) -> None:
    for scheme in ("light", "dark"):
        for size in ({"width": 1280, "height": 800}, {"width": 390, "height": 844}):
            with look(browser, cluster, "east", color_scheme=scheme, viewport=size) as page:
                page.goto("/login")
                assert serious(page) == [], f"login, {scheme}, {size}"
                log_in(page, "anna")
                for path in PAGES:
                    page.goto(path)
                    assert serious(page) == [], f"{path}, {scheme}, {size}"
                    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
                    assert wide <= 0, f"{path} at {size} is {wide} px too wide"


def test_axe_would_find_a_field_without_a_name_and_pale_text(browser: Browser, cluster: Cluster) -> None:
    with look(browser, cluster, "east") as page:
        page.goto("/login")
        page.evaluate(
            "document.querySelector('[name=password]').closest('label').replaceWith("
            "document.querySelector('[name=password]'))"
        )
        assert any(found.startswith("label") for found in serious(page))
