"""Roles, stream state and topology: small, durable, never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from castling.config import (
    Config,
    DatabaseSettings,
    GroupSettings,
    InstallationSettings,
    LinkSettings,
    NodeSettings,
)
from castling.errors import LinkProtocol, NotFound, StaleEpoch, StateError
from castling.groups.role import Role, load_role, save_role
from castling.groups.stream import BulkRequest, SeedState, StreamState, load_stream, save_stream
from castling.groups.topology import (
    End,
    EndName,
    capture_node,
    ends_on,
    listen_address,
    receive_address,
    streams,
)
from castling.host import RealHost


def group(**changes):
    database = DatabaseSettings(host="127.0.0.1", dbname="bank", user="castling")
    settings = {"kind": "postgres", "primary": "east", "backups": ["west"]} | changes
    nodes = {settings["primary"], *settings["backups"]}
    return GroupSettings(databases=dict.fromkeys(sorted(nodes), database), **settings)


def config(**groups):
    nodes = {
        name: NodeSettings(api=f"{name}:7410", link=f"{name}:7411", link_listen=listen)
        for name, listen in (("east", None), ("west", "0.0.0.0:9000"), ("north", None))
    }
    return Config(installation=InstallationSettings(name="acme"), nodes=nodes, groups=groups)


def test_an_epoch_never_goes_back(tmp_path):
    host, folder = RealHost(), str(tmp_path / "orders")
    assert load_role(host, folder, default=Role(1, "east")) == Role(1, "east")
    save_role(host, folder, Role(2, "west"))
    save_role(host, folder, Role(2, "west"))
    with pytest.raises(StaleEpoch):
        save_role(host, folder, Role(1, "east"))
    with pytest.raises(StaleEpoch):
        save_role(host, folder, Role(2, "east"))
    assert load_role(host, folder, default=Role(1, "east")) == Role(2, "west")


def test_a_damaged_role_is_never_guessed(tmp_path):
    (tmp_path / "role.json").write_text('{"epoch":')
    with pytest.raises(StateError):
        load_role(RealHost(), str(tmp_path), default=Role(1, "east"))


def test_the_stream_state_survives(tmp_path):
    host, folder = RealHost(), str(tmp_path)
    assert load_stream(host, folder) == StreamState(SeedState.EMPTY, 0)
    save_stream(host, folder, StreamState(SeedState.SEEDED, 3))
    assert load_stream(host, folder) == StreamState(SeedState.SEEDED, 3)
    (tmp_path / "stream.json").write_text("{}x")
    with pytest.raises(StateError):
        load_stream(host, folder)


def test_a_bulk_request_comes_back_as_it_went():
    request = BulkRequest("kind", b"\x00\xff")
    assert BulkRequest.decode(request.encode()) == request
    with pytest.raises(LinkProtocol):
        BulkRequest.decode(b"\xff\xff")


def test_every_end_runs_on_exactly_one_node():
    found = config(
        orders=group(),
        fanout=group(backups=["west", "north"]),
        managed=group(primary="north", backups=["west"], capture_on="west"),
    )
    assert ends_on(found, "east") == [
        End("fanout", "west", EndName.SOURCE),
        End("fanout", "north", EndName.SOURCE),
        End("orders", "west", EndName.SOURCE),
    ]
    assert [end for end in ends_on(found, "west") if end.group == "managed"] == [
        End("managed", "west", EndName.SOURCE),
        End("managed", "west", EndName.RECEIVE),
        End("managed", "west", EndName.APPLY),
    ]
    everywhere = [end for node in found.nodes for end in ends_on(found, node)]
    assert len(everywhere) == len(set(everywhere)) == 3 * 4
    assert capture_node(found.groups["managed"]) == "west"


def test_addresses():
    found = config(orders=group(), second=group(link=LinkSettings(port=7500)))
    assert receive_address(found, "orders", "west") == "west:7411"
    assert receive_address(found, "second", "west") == "west:7500"
    assert listen_address(found, "orders", "west") == "0.0.0.0:9000"
    with pytest.raises(NotFound):
        streams(found, "nobody")


@pytest.mark.parametrize("damage", [b"", b"{", b'{"seed": "\xff"}', b'{"seed": "none"}', b"[" * 60_000])
def test_a_state_file_that_is_damaged_is_never_taken_for_an_empty_one(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "stream.json").write_bytes(damage)
    with pytest.raises(StateError, match=r"stream\.json"):
        load_stream(RealHost(), str(tmp_path))


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"\x81\xa2op\xa1\xff", b"\x91" * 60_000])
def test_a_garbled_bulk_request_is_a_breach_of_the_protocol(damage: bytes) -> None:
    with pytest.raises(LinkProtocol):
        BulkRequest.decode(damage)
