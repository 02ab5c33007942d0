"""The link over real TLS, through a proxy that cuts, stalls and corrupts; and who is let in."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from link_cast import Backup, Source, make_sender, until

from castling.config import Config, GroupSettings, InstallationSettings, LinkSettings
from castling.errors import CastlingError, ConfigError, LinkError, LinkForeign, LinkRefused
from castling.groups.source import SourceEnd
from castling.host import RealHost
from castling.kinds.base import Stream
from castling.link import channel as channel_module
from castling.link.authority import create_authority, issue, new_key_and_csr
from castling.link.feed import CaptureFeed
from castling.link.sender import Ack, Sender
from castling.link.tls import NodeTls
from castling.testing.proxy import FaultProxy


class Installation:
    """A CA and its nodes' material in files."""

    def __init__(self, folder: Path, name: str = "acme") -> None:
        folder.mkdir()
        self.folder = folder
        self.ca, self.key = create_authority(name)
        (folder / "ca.pem").write_bytes(self.ca)

    def node(self, name: str, *, ca: Path | None = None) -> NodeTls:
        key, request = new_key_and_csr(name)
        (self.folder / f"{name}.pem").write_bytes(issue(self.ca, self.key, request, name, 30))
        (self.folder / f"{name}.key").write_bytes(key)
        return NodeTls(ca or self.folder / "ca.pem", self.folder / f"{name}.pem", self.folder / f"{name}.key")


@dataclass
class Line:
    """A backup behind a proxy, and a source that keeps streaming to it as a source end would."""

    installation: Installation
    backup: Backup
    proxy: FaultProxy
    source: Source
    feed: CaptureFeed
    sender: Sender
    errors: list[CastlingError]

    async def keep_streaming(self) -> None:
        while True:
            try:
                welcome = await self.sender.connect()
                await self.feed.open(welcome.tail)
                await self.sender.stream(self.feed)
            except LinkError as error:
                self.errors.append(error)
                await asyncio.sleep(0.02)

    async def arrived(self, count: int) -> None:
        await until(lambda: self.source.confirmed >= count, f"{count} acknowledged changes")
        assert self.backup.payloads() == self.source.log[:count], "lost, repeated or out of order"


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "acme")


@pytest.fixture
async def line(installation: Installation, tmp_path: Path) -> AsyncIterator[Line]:
    east, west = installation.node("east"), installation.node("west")
    backup = Backup(tmp_path, tls=west, installation=west.installation)
    source = Source()
    async with backup.running() as address:
        with FaultProxy(0, address) as proxy:
            host = RealHost()
            sender = make_sender(proxy.address, tls=east, installation=east.installation)
            feed = CaptureFeed(host, source, epoch=1, window=1 << 20)
            line = Line(installation, backup, proxy, source, feed, sender, [])
            task = asyncio.create_task(line.keep_streaming())
            yield line
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await feed.close()
            await sender.close()


@pytest.fixture
def short_lived(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Silence is death after a second, so that a stall is noticed within the test."""
    monkeypatch.setattr("castling.link.handshake.DEAD_AFTER_S", 1.5)
    yield


def changes(count: int, size: int = 2000) -> list[bytes]:
    return [b"%08d" % number * (size // 8) for number in range(count)]


# --- faults on the line -----------------------------------------------------------------------


async def test_a_cut_link_goes_on_without_gap_or_repetition(line: Line) -> None:
    wanted = changes(600)
    for begin in range(0, 600, 100):
        line.source.write(*wanted[begin : begin + 100])
        await until(lambda begin=begin: line.source.confirmed > begin, "some of it")
        line.proxy.cut()
        await until(lambda: line.sender.report()["state"] == "down", "the loss to be noticed")
        line.proxy.heal()
    await line.arrived(600)
    assert line.feed.resumed >= 5 and line.source.opens == [0], "a mere link loss asked the source again"


async def test_a_stalled_link_is_taken_for_dead_and_replaced(short_lived: None, line: Line) -> None:
    line.source.write(*changes(50))
    await line.arrived(50)
    line.proxy.stall()
    line.source.write(*changes(100)[50:])
    await until(lambda: line.errors, "the silence to be noticed")
    assert "nothing was heard" in str(line.errors[0])
    assert line.source.confirmed == 50
    line.proxy.heal()
    await line.arrived(100)


async def test_a_corrupted_link_is_noticed_and_resumed(line: Line) -> None:
    line.source.write(*changes(50))
    await line.arrived(50)
    for round in range(1, 4):
        line.proxy.corrupt_next()
        line.source.write(*changes(50))
        await until(lambda round=round: len(line.errors) >= round, "the damage to be noticed")
        await line.arrived(50 + 50 * round)
    assert line.proxy.corrupted >= 3


async def test_a_silent_old_connection_gives_way_to_a_new_one(line: Line) -> None:
    """A half-open connection: the receiver has not noticed that the source's node is gone."""
    line.source.write(*changes(10))
    await line.arrived(10)
    line.proxy.stall()
    tls = line.installation.node("east")
    address = line.backup.receiver.address
    assert address is not None
    fresh = make_sender(address, tls=tls, installation=tls.installation)
    welcome = await fresh.connect()
    assert welcome.tail.offset == 10
    await fresh.close()


# --- who is let in ----------------------------------------------------------------------------


async def test_a_node_of_another_installation_is_refused_with_its_own_error(
    line: Line, tmp_path: Path
) -> None:
    foreign = Installation(tmp_path / "other").node("east")
    sender = make_sender(line.proxy.address, tls=foreign, installation=foreign.installation)
    with pytest.raises(LinkForeign):
        await sender.connect()


class Intruder(NodeTls):
    """Does not look at its own certificate first."""

    def _check_own(self) -> None:
        pass


async def test_a_foreign_certificate_is_refused_even_by_whom_it_trusts(line: Line, tmp_path: Path) -> None:
    """The intruder trusts our CA, so that only our side can object."""
    other = Installation(tmp_path / "other")
    other.node("east")
    ours = line.installation.folder / "ca.pem"
    intruder = Intruder(ours, other.folder / "east.pem", other.folder / "east.key")
    await until(lambda: line.backup.receiver.report()["peer"], "the rightful sender")
    sender = make_sender(line.proxy.address, tls=intruder, installation=intruder.installation)
    with pytest.raises(LinkError) as caught:
        await sender.connect()
    assert "certificate" in caught.value.hint
    assert line.backup.receiver.report()["connections"] == 1, "the intruder was welcomed"


async def test_a_mixed_up_folder_is_told_before_connecting(
    installation: Installation, tmp_path: Path
) -> None:
    other = Installation(tmp_path / "other")
    mixed = other.node("east", ca=installation.folder / "ca.pem")
    with pytest.raises(ConfigError, match="is not of the authority"):
        mixed.client()


async def test_a_node_can_not_speak_for_another(line: Line) -> None:
    north = line.installation.node("north")
    sender = make_sender(line.proxy.address, tls=north, node="east", installation=north.installation)
    with pytest.raises(LinkRefused, match="north says that it is east"):
        await sender.connect()


async def test_the_source_end_sends_to_its_backup_and_to_no_other_node(line: Line, tmp_path: Path) -> None:
    """Any node of the installation could acknowledge what it never wrote: who answers must be the backup."""
    east = line.installation.node("east")
    group = GroupSettings(kind="postgres", primary="east", backups=["north"], databases={})
    config = Config(installation=InstallationSettings(name="acme"), nodes={}, groups={"orders": group})
    stream = Stream("orders", "north", group, config)
    end = SourceEnd(
        RealHost(),
        stream,
        address=line.proxy.address,
        tls=east,
        installation=east.installation,
        node="east",
        epoch=1,
        capture=line.source,
        seed_source=line.source,
        folder=str(tmp_path),
    )
    with pytest.raises(LinkForeign, match="is node west, not north"):
        await end._sender.connect()
    with pytest.raises(LinkForeign, match="is node west, not north"):
        await end._bulk_client.open()


async def test_a_node_that_is_not_the_primary_may_not_send(line: Line) -> None:
    north = line.installation.node("north")
    sender = make_sender(line.proxy.address, tls=north, node="north", installation=north.installation)
    with pytest.raises(LinkRefused, match="may not send"):
        await sender.connect()


async def test_a_certificate_without_a_node_s_name_is_foreign(installation: Installation) -> None:
    """The CA's own certificate is of this installation and yet of no node."""
    tls = installation.node("east")
    der = ssl.PEM_cert_to_DER_cert(installation.ca.decode())
    with pytest.raises(LinkForeign):
        tls.peer_node(der)


def test_nothing_older_than_tls_1_3_is_spoken(installation: Installation) -> None:
    tls = installation.node("east")
    server = tls.server()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.load_verify_locations(installation.folder / "ca.pem")
    with pytest.raises(ssl.SSLError):
        _shake_hands(client, server)
    newest = tls.client()
    _shake_hands(newest, server)  # the control: the same handshake with 1.3 is fine


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    into_client, into_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(into_client, into_server, server_hostname="localhost"),
        server.wrap_bio(into_server, into_client, server_side=True),
    ]
    for _ in range(10):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()


async def test_who_says_nothing_is_dropped(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without TLS never becomes a connection of the receiver, and costs it nothing."""
    host, _, port = line.proxy.address.rpartition(":")
    with socket.create_connection((host, int(port))) as silent:
        silent.sendall(b"GET / HTTP/1.1\r\n\r\n")
        line.source.write(*changes(10))
        await line.arrived(10)


# --- bulk over TLS ----------------------------------------------------------------------------


async def test_bulk_bodies_arrive_whole_beside_the_stream(line: Line) -> None:
    from castling.link.sender import BulkClient, HelloInfo

    tls = line.installation.node("east")
    hello = HelloInfo(group="orders", node="east", epoch=1, installation=tls.installation)
    await until(lambda: line.backup.receiver.report()["peer"], "the stream, which comes first")
    client = BulkClient(RealHost(), line.proxy.address, tls, hello, LinkSettings())
    call = await client.open()

    async def body() -> AsyncIterator[bytes]:
        for number in range(40):
            yield b"%d" % number * 100_000

    sent = b"".join([chunk async for chunk in body()])
    assert await call(b"about", body()) == b"%d" % len(sent)
    assert await call(b"nothing", None) == b"0"
    assert line.backup.calls == [(b"about", sent), (b"nothing", b"")]
    line.source.write(*changes(10))
    await line.arrived(10)
    await client.close()


async def test_acks_tell_only_what_was_synced(line: Line) -> None:
    acks: list[Ack] = []
    line.source.write(*changes(200))
    await line.arrived(200)
    told = {tail.position for tail in line.backup.hardened}
    assert told and max(told) == line.backup.journal.hardened.position
    assert not acks
    assert channel_module.DEAD_AFTER_S == 10.0
