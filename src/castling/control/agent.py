"""One agent per node: API, store and supervisor in one process and one event loop.

It may be killed and started at will: the ends of the groups run on without it, and a new
agent finds them by their locks. One agent per home: it holds a lock file.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import ssl
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
from starlette.routing import Route

import castling
from castling.control.accounts import Accounts
from castling.control.api import build_app
from castling.control.audit_group import AuditGroup
from castling.control.client import client_context
from castling.control.deployment import Deployment
from castling.control.doors import ControlDoors
from castling.control.group import Groups
from castling.control.home import Home, RunningAgent, node_tls, write_private
from castling.control.membership import Membership
from castling.control.nodes import LocalNode, RemoteNode
from castling.control.process import prepared_command
from castling.control.roles import RoleKeeper
from castling.control.routes import Services
from castling.control.server import AgentServer, bind
from castling.control.store import Store
from castling.control.supervisor import Supervisor
from castling.control.switches import Switches
from castling.control.watch import Watch
from castling.errors import AlreadyRunning
from castling.observe import events
from castling.switch.runner import Runner

__all__ = ["listen_address", "own_address", "run_agent"]


def own_address(home: Home, local: LocalNode | None = None) -> str:
    """`host:port` by which others reach this node's agent."""
    if local is not None and local.config is not None and local.name in local.config.nodes:
        return local.config.nodes[local.name].api
    return home.address().api


def listen_address(home: Home, local: LocalNode) -> str:
    """`host:port` that this node's agent binds."""
    if local.config is not None and local.name in local.config.nodes:
        node = local.config.nodes[local.name]
        return node.api_listen or node.api
    address = home.address()
    return address.api_listen or address.api


#: another face of the use-cases: its paths, to be served beside the API's
Face = Callable[[Services], Sequence[Route]]


async def run_agent(home: Home, face: Face | None = None) -> None:
    """Run until SIGTERM or SIGINT. AlreadyRunning when another agent has this home."""
    with _only_one(home), Store(home.state) as store:
        log = events("agent")
        supervisor = Supervisor(home.folder, store.add_event, prepared=prepared_command)
        local = LocalNode(home, store, supervisor, time.time_ns)
        services = _services(home, store, local)
        server = AgentServer(build_app(services, face(services) if face else ()), home)
        address = listen_address(home, local)
        listener = bind(address)
        _stop_on_signals(server, services.watch)
        write_private(home.agent_file, msgspec.json.encode(RunningAgent(pid=os.getpid(), address=address)))
        log.info("agent.started", node=local.name, address=address, version=castling.__version__)
        keeping = asyncio.create_task(supervisor.run(local.wanted(), local.own_ends()))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        beside = [
            asyncio.create_task(local.releases.run()),
            asyncio.create_task(local.copies.run()),
            asyncio.create_task(local.audits.run()),
            asyncio.create_task(services.watch.run()),
            asyncio.create_task(services.switches.runner.run()),
            asyncio.create_task(RoleKeeper(local, _reaching(home)).run()),
        ]
        try:
            done, _ = await asyncio.wait((keeping, serving, *beside), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a supervisor that failed takes the agent with it
        finally:
            server.should_exit = True
            for task in (keeping, *beside):
                task.cancel()
            await asyncio.gather(keeping, serving, *beside, return_exceptions=True)
            log.info("agent.stopped", node=local.name)


def _reaching(home: Home) -> Callable[[str, str], RemoteNode]:
    def reach(name: str, address: str) -> RemoteNode:
        return RemoteNode(name, address, _peer_context(home, name))

    return reach


def _services(home: Home, store: Store, local: LocalNode) -> Services:
    reach = _reaching(home)
    changing = asyncio.Lock()
    groups = Groups(local, reach, changing)
    audits = AuditGroup(groups.captures, groups.tree)
    local.audits.lag = audits.lag
    doors = ControlDoors(local, reach, groups)
    runner = Runner(store, doors, store.add_event)
    return Services(
        local=local,
        store=store,
        groups=groups,
        audits=audits,
        switches=Switches(local, store, doors, runner, reach),
        deployment=Deployment(local, store, reach, changing),
        membership=Membership(home, local, store, lambda: own_address(home, local), time.time_ns),
        accounts=Accounts(store),
        watch=Watch(groups, store),
    )


def _peer_context(home: Home, name: str) -> ssl.SSLContext:
    identify = node_tls(home).peer_node
    return client_context(home.ca_cert, identify=identify, expect=name, cert=(home.node_cert, home.node_key))


def _stop_on_signals(server: AgentServer, watch: Watch) -> None:
    def stop() -> None:
        server.should_exit = True
        watch.close()  # pages that are live would be waited for

    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stop)


@contextlib.contextmanager
def _only_one(home: Home) -> Iterator[None]:
    fd = os.open(home.agent_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            running = home.running_agent()
            raise AlreadyRunning(
                f"an agent of {home.folder} is running" + (f" (process {running.pid})" if running else "")
            ) from None
        yield
    finally:
        os.close(fd)
