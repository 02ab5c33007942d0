"""How two nodes begin: HELLO, and WELCOME or REFUSE.

The listener trusts nothing before `verify` has passed; what it finds wrong has its own
error, and the connecting side raises the same one.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from castling import __version__
from castling.errors import (
    JournalVersion,
    LinkError,
    LinkForeign,
    LinkProtocol,
    LinkRefused,
    LinkVersion,
    StaleEpoch,
)
from castling.host import Host, TlsContexts
from castling.journal.record import Position, Tail
from castling.link.channel import DEAD_AFTER_S, Channel
from castling.link.frames import (
    MAGIC,
    PROTOCOL,
    PROTOCOL_MIN,
    RECORD_FORMAT,
    FrameType,
    Hello,
    Purpose,
    TailBody,
    WelcomeBody,
    decode,
    encode,
)
from castling.link.pace import Pace

__all__ = ["HELLO_WITHIN_S", "HelloInfo", "Welcome", "dial", "verify", "welcome"]

#: how long either side waits for the other's first frame, seconds
HELLO_WITHIN_S = 10.0
#: WELCOME waits until what was appended before is synced, and the record stream before has ended
WELCOME_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class HelloInfo:
    """Who connects, for which group, in which role's epoch.

    `peer`: the node that must answer, by its certificate; None: any of the installation.
    """

    group: str
    node: str
    epoch: int
    installation: str
    peer: str | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the far side answered: its durable tail, the journal's epoch and its own state."""

    tail: Tail
    epoch: int
    state: dict[str, Any]
    node: str
    version: int
    wall_ns: int


async def dial(
    host: Host,
    address: str,
    tls: TlsContexts | None,
    info: HelloInfo,
    purpose: Purpose,
    pace: Pace,
) -> tuple[Channel, Welcome]:
    """Connect and be welcomed. Raises LinkError when it may work later, LinkForeign, LinkVersion,
    StaleEpoch, LinkRefused or JournalVersion when it won't."""
    connection = await host.network.connect(address, tls, timeout_s=HELLO_WITHIN_S)
    channel = Channel(host, connection, pace, dead_after_s=WELCOME_WITHIN_S)
    try:
        if info.peer is not None and connection.peer_node not in (None, info.peer):
            raise LinkForeign(f"{address} is node {connection.peer_node}, not {info.peer}")
        asked_s = host.monotonic()
        await channel.write_now(FrameType.HELLO, encode(_hello(info, purpose)))
        _, body = await channel.read(FrameType.WELCOME)
        channel.gauge.trip(host.monotonic() - asked_s)
        found = decode(body, WelcomeBody)
        if not PROTOCOL_MIN <= found.version <= PROTOCOL:
            raise LinkProtocol(f"{address} chose protocol version {found.version}, which was not offered")
    except LinkError as error:
        if type(error) is LinkError and not channel.received_bytes and tls is not None:
            # in TLS 1.3 the side that connects is never told that its certificate was refused
            error.hint = f"if this goes on: does {address} accept this node's certificate?"
        channel.close()
        raise
    except BaseException:
        channel.close()
        raise
    channel.dead_after_s = DEAD_AFTER_S
    return channel, _welcome(found)


def _hello(info: HelloInfo, purpose: Purpose) -> Hello:
    return Hello(
        magic=MAGIC,
        version_min=PROTOCOL_MIN,
        version_max=PROTOCOL,
        installation=info.installation,
        group=info.group,
        node=info.node,
        epoch=info.epoch,
        purpose=purpose,
        journal_format=RECORD_FORMAT,
        software=__version__,
    )


def _welcome(body: WelcomeBody) -> Welcome:
    tail = body.tail
    return Welcome(
        tail=Tail(Position(tail.epoch, tail.seq), tail.offset, tail.t_ns, tail.session),
        epoch=body.epoch,
        state=body.state,
        node=body.node,
        version=body.version,
        wall_ns=body.wall_ns,
    )


def verify(
    hello: Hello, *, installation: str, group: str, allowed: Set[str], peer_node: str | None, epoch: int
) -> int:
    """The protocol version to speak with who said `hello`; raises what it is to be refused with.

    Pure. `peer_node`: the name in its verified certificate; None where TLS is not used.
    """
    if hello.magic != MAGIC:
        raise LinkProtocol("the first frame is not a Castling HELLO")
    if hello.version_max < PROTOCOL_MIN or hello.version_min > PROTOCOL:
        raise LinkVersion(
            f"node {hello.node} speaks link versions {hello.version_min} to {hello.version_max},"
            f" this node {PROTOCOL_MIN} to {PROTOCOL}",
            hint="upgrade the node with the older release first",
        )
    if hello.installation != installation:
        raise LinkForeign(f"node {hello.node} belongs to another installation")
    if peer_node is not None and peer_node != hello.node:
        raise LinkRefused(f"node {peer_node} says that it is {hello.node}")
    if hello.group != group:
        raise LinkRefused(f"group {hello.group} is not received here, but {group}")
    if hello.node not in allowed:
        raise LinkRefused(
            f"node {hello.node} may not send records of group {group}",
            hint="the deployed configuration of this node names another primary: `castling deploy`",
        )
    if hello.journal_format != RECORD_FORMAT:
        raise JournalVersion(
            f"node {hello.node} sends records of format {hello.journal_format},"
            f" this node reads {RECORD_FORMAT}"
        )
    if hello.epoch < epoch:
        raise StaleEpoch(
            f"node {hello.node} is primary of epoch {hello.epoch}, which is over: it is {epoch} now",
            epoch=hello.epoch,
            journal_epoch=epoch,
        )
    return min(hello.version_max, PROTOCOL)


def welcome(
    version: int, node: str, tail: Tail, epoch: int, state: dict[str, Any], wall_ns: int
) -> WelcomeBody:
    """The WELCOME that tells a durable `tail`."""
    at = tail.position
    return WelcomeBody(
        version=version,
        node=node,
        tail=TailBody(epoch=at.epoch, seq=at.seq, offset=tail.offset, t_ns=tail.t_ns, session=tail.session),
        epoch=epoch,
        state=state,
        wall_ns=wall_ns,
    )
