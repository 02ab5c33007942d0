"""A connection that nobody wants any more leaves nothing behind on the server."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from tests.real.pg_cast import until

from castling.config import DatabaseSettings
from castling.kinds.postgres.connect import connect
from castling.testing.servers import EmbeddedServer


async def test_given_up_at_any_moment_it_is_gone(west: EmbeddedServer, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text(f"{west.PASSWORD}\n")
    settings = DatabaseSettings(
        host="127.0.0.1", port=west.port, dbname="postgres", user=west.USER, password_file=str(password)
    )
    chance, kept = random.Random(4), []
    for _ in range(60):
        connecting = asyncio.create_task(connect(settings, application_name="given up"))
        kept.append(connecting)  # what is collected is closed, as if by chance
        await asyncio.sleep(chance.random() * 0.03)
        connecting.cancel()
        await asyncio.wait((connecting,))
        if not connecting.cancelled():
            await connecting.result().close()
    assert any(each.cancelled() for each in kept)
    left = "SELECT FROM pg_stat_activity WHERE state = 'starting' OR application_name = 'given up'"
    await until(lambda: not west.execute(left))
