"""Records from a capture into a remote journal over a real connection (without TLS)."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from link_cast import Backup, Source, make_sender, until

from castling.host import RealHost
from castling.link.feed import CaptureFeed
from castling.link.sender import Ack


async def test_what_is_written_arrives_in_order_and_is_acknowledged(tmp_path: Path) -> None:
    backup, source = Backup(tmp_path), Source()
    acks: list[Ack] = []
    async with backup.running() as address:
        sender = make_sender(address)
        feed = CaptureFeed(RealHost(), source, epoch=1, window=1 << 20)
        welcome = await sender.connect()
        assert welcome.tail.session is None and welcome.state == {"seed": "seeded"}
        await feed.open(welcome.tail)
        task = asyncio.create_task(sender.stream(feed, on_ack=acks.append))
        wanted = [b"change %d" % number for number in range(100)]
        source.write(*wanted)
        await until(lambda: source.confirmed == 100, "the acknowledgement")
        assert backup.payloads() == wanted
        assert acks[-1].hardened.offset == 100 and sender.report()["in_flight_bytes"] == 0
        assert sender.report()["state"] == "up" and backup.receiver.report()["peer"] == "east"
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await feed.close()
        await sender.close()
