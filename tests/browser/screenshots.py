"""`make screenshots`: every page of the portal at two sizes, light and dark, into a folder."""

from __future__ import annotations

import sys
from pathlib import Path

from browser_cast import add_users, chromium, log_in, look

from castling.testing.bank import Bank, create_bank
from castling.testing.cluster import GROUP, Cluster

SIZES = ((1280, 800), (390, 844))
PAGES = {
    "overview": "/",
    "group": f"/groups/{GROUP}",
    "confirm": f"/groups/{GROUP}/do/stop",
    "audits": "/audits",
    "events": "/events",
    "settings": "/settings",
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with Cluster(group={"lanes": 2}) as cluster, chromium() as browser:
        create_bank(cluster.dsn("east"), accounts=500)
        cluster.start_group()
        add_users(cluster, "east")
        bank = Bank(cluster.dsn("east"), accounts=500, clients=1, pause_s=0.1).start()
        try:
            for width, height in SIZES:
                for scheme in ("light", "dark"):
                    viewport = {"width": width, "height": height}
                    with look(browser, cluster, "east", color_scheme=scheme, viewport=viewport) as page:
                        page.goto("/login")
                        page.screenshot(path=folder / f"login-{width}-{scheme}.png", full_page=True)
                        log_in(page, "anna")
                        for name, path in PAGES.items():
                            page.goto(path)
                            page.wait_for_timeout(500)  # for the first live content
                            page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)
        finally:
            bank.stop()
    print(f"{len(list(folder.glob('*.png')))} pictures in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots"))
