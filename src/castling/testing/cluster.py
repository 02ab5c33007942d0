"""Two nodes on one machine, set up as a user would: real servers, real agents, the real command line.

    east: PostgreSQL, agent ──(a proxy that can be told to misbehave)──▶ west: PostgreSQL, agent

Everything lives in one temporary folder and dies with the context manager, also after an
exception or Ctrl-C: this process is the reaper of all it started, so nothing escapes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from castling.control.client import client_context
from castling.control.home import Home, node_tls
from castling.control.nodes import RemoteNode
from castling.errors import CastlingError, StateError
from castling.groups.role import Role, load_role
from castling.groups.topology import End, EndName, end_paths
from castling.host import RealHost
from castling.observe import read_report
from castling.testing.proxy import FaultProxy
from castling.testing.servers import EmbeddedServer, free_port

__all__ = ["Cluster", "wait_for"]

GROUP = "bank"
NODES = ("east", "west")
_PR_SET_CHILD_SUBREAPER = 36


def wait_for(condition: Callable[[], bool], what: str, *, within_s: float = 120.0) -> None:
    """Poll until `condition` holds; StateError naming `what` when it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise StateError(f"{what}: not within {within_s:.0f} s")
        time.sleep(0.05)


class Cluster:
    """`group`: keys of the group's table in castling.toml, e.g. {"delivery": "sync"}; values as in TOML
    (nested tables as dictionaries). `parent`: where its folder is made; servers run as another user, so
    everybody must be able to pass through. `direct`: the link does not pass through the proxy. `bins`: the
    programs of a node's server, where they are not the embedded ones."""

    def __init__(
        self,
        *,
        database: str = GROUP,
        group: dict[str, Any] | None = None,
        server_settings: dict[str, str] | None = None,
        parent: Path | None = None,
        direct: bool = False,
        bins: dict[str, Path] | None = None,
    ) -> None:
        bins = bins or {}
        self._direct = direct
        self.database = database
        self._group = {"seed": {"schema": "create"}} | (group or {})
        self.folder = Path(tempfile.mkdtemp(prefix="castling-cluster-", dir=parent or "/tmp"))
        self.folder.chmod(0o755)
        self.servers = {
            name: EmbeddedServer(
                self.folder / f"postgres-{name}",
                name=name,
                bin_folder=bins.get(name),
                settings=server_settings,
            )
            for name in NODES
        }
        self.homes = {name: self.folder / name for name in NODES}
        self.api = {name: free_port() for name in NODES}
        self.link = {name: free_port() for name in NODES}
        self.proxy = FaultProxy(0, f"127.0.0.1:{self.link['west']}")
        self.agents: dict[str, subprocess.Popen[bytes]] = {}

    # --- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def _set_up(self) -> None:
        for server in self.servers.values():
            server.start()
            server.execute(f"CREATE DATABASE {self.database}")
        password = self.folder / "password"
        password.touch(mode=0o600)
        password.write_text(EmbeddedServer.PASSWORD + "\n")
        self.proxy.start()
        self.cli("east", "init", "demo", "--node", "east", *self._addresses("east"))
        self.start_agent("east")
        token = self.cli("east", "invite", "west")["data"]["token"]
        self.cli("west", "join", "-", *self._addresses("west"), given=token)
        self.start_agent("west")
        (self.homes["east"] / "castling.toml").write_text(self.toml())
        self.cli("east", "deploy", "--yes")

    def _addresses(self, node: str) -> list[str]:
        return ["--api", f"127.0.0.1:{self.api[node]}", "--link", f"127.0.0.1:{self.link[node]}"]

    def toml(self) -> str:
        """castling.toml of the two nodes and the one group; west is reached through the proxy."""
        lines = ['[installation]\nname = "demo"']
        for node in NODES:
            address = (
                self.proxy.address if node == "west" and not self._direct else f"127.0.0.1:{self.link[node]}"
            )
            lines.append(f'[nodes.{node}]\napi = "127.0.0.1:{self.api[node]}"\nlink = "{address}"')
            if node == "west":
                lines.append(f'link_listen = "127.0.0.1:{self.link[node]}"')
        group: dict[str, Any] = {"kind": "postgres", "primary": "east", "backups": ["west"]} | self._group
        group["databases"] = {
            node: {
                "host": "127.0.0.1",
                "port": self.servers[node].port,
                "dbname": self.database,
                "user": EmbeddedServer.USER,
                "password_file": str(self.folder / "password"),
            }
            for node in NODES
        }
        return "\n".join([*lines, *_toml_table(f"groups.{GROUP}", group)]) + "\n"

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop and remove everything. Repeatable."""
        for agent in self.agents.values():
            agent.kill()
            agent.wait()
        for pid in self._workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.proxy.stop()
        for server in self.servers.values():
            server.remove()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- agents and commands ------------------------------------------------------------------

    def _environment(self, node: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CASTLING_")}
        return kept | {"CASTLING_HOME": str(self.homes[node])}

    def start_agent(self, node: str) -> None:
        """Start the node's agent and wait until it answers."""
        with (self.folder / f"{node}.agent.log").open("ab") as log:
            self.agents[node] = subprocess.Popen(
                [sys.executable, "-m", "castling.cli.main", "agent"],
                env=self._environment(node),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(lambda: self._answers(node), f"the agent of {node} answers")

    def _answers(self, node: str) -> bool:
        if self.agents[node].poll() is not None:
            tail = (self.folder / f"{node}.agent.log").read_text(errors="replace")[-800:]
            raise StateError(f"the agent of {node} ended: {tail}")
        with socket.socket() as probe:  # a command costs half a second, a look at the port nothing
            if probe.connect_ex(("127.0.0.1", self.api[node])) != 0:
                return False
        try:
            self.cli(node, "node", "list")
        except CastlingError:
            return False
        return True

    def kill_agent(self, node: str) -> None:
        self.agents[node].kill()
        self.agents[node].wait()

    def cli(self, node: str, *arguments: str, given: str = "") -> dict[str, Any]:
        """Run a command as the administrator of `node`; its JSON. StateError with its words when it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "castling.cli.main", *arguments, "--json"],
            env=self._environment(node),
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = f"{done.stdout.strip()} {done.stderr.strip()}"
            raise StateError(f"castling {' '.join(arguments)} failed with {done.returncode}: {said[-1500:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    # --- the group ----------------------------------------------------------------------------

    def start_group_now(self) -> None:
        self.cli("east", "group", "start", GROUP)

    def start_group(self, *, within_s: float = 240.0) -> None:
        """Start it and wait until it is seeded and runs."""
        self.start_group_now()
        wait_for(self.is_running, "the group runs", within_s=within_s)

    def stop_group(self) -> None:
        self.cli("east", "group", "stop", GROUP, "--yes")
        wait_for(lambda: not self._ends(), "the ends of the group have stopped")

    def is_running(self) -> bool:
        """The source end streams and the apply end applies (so the first copy is done)."""
        return (
            self.report("source").get("state") == "running" and self.report("apply").get("state") == "running"
        )

    @property
    def primary(self) -> str:
        """Of the latest epoch that a node knows."""
        default = Role(1, "east")
        folders = [str(home / "groups" / GROUP) for home in self.homes.values()]
        roles = [load_role(RealHost(), folder, default=default) for folder in folders]
        return max(roles, key=lambda role: role.epoch).primary

    @property
    def backup(self) -> str:
        return "east" if self.primary == "west" else "west"

    def node(self, name: str) -> RemoteNode:
        """What the agent of `name` does at another's request, asked with the other's certificate."""
        home = Home(self.homes["east" if name == "west" else "west"])
        identify, cert = node_tls(home).peer_node, (home.node_cert, home.node_key)
        tls = client_context(home.ca_cert, identify=identify, expect=name, cert=cert)
        return RemoteNode(name, f"127.0.0.1:{self.api[name]}", tls)

    def _end(self, name: str) -> tuple[str, End]:
        primary, backup = self.primary, self.backup
        captures = str(self._group.get("capture_on", "east")) if primary == "east" else primary
        return captures if name == EndName.SOURCE else backup, End(GROUP, backup, EndName(name))

    def report(self, name: str) -> dict[str, Any]:
        """What the process that is an end (source, receive, apply) says, or what the last one ended with.

        Empty when the one that runs has said nothing yet, and when the last one was killed: of what a
        dead process said of itself, nothing may be taken for now.
        """
        node, end = self._end(name)
        pid = self.pid(name)
        found = read_report(end_paths(self.homes[node], end).report, time.time_ns()) or {}
        has_ended = pid is None and found.get("state") in ("failed", "stopped")
        return found if has_ended or found.get("pid") == pid else {}

    def pid(self, name: str) -> int | None:
        """The process that holds the end's lock; None when nobody does."""
        return self._ends().get(name)

    def _ends(self) -> dict[str, int]:
        found = {}
        for name in EndName:
            node, end = self._end(name)
            pid = _holder(end_paths(self.homes[node], end).lock)
            if pid is not None:
                found[str(name)] = pid
        return found

    def _workers(self) -> list[int]:
        """All processes of ends, also those that have not got as far as to hold their lock."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it ends meanwhile, or is no process
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if any(str(home).encode() in words for home in self.homes.values()):
                    found.append(int(entry.name))
        return found

    def kill(self, name: str, *, within_s: float = 60.0) -> int:
        """`kill -9` of an end, as soon as there is one; the process, which is gone then. StateError when
        none comes."""
        wait_for(
            lambda: self.pid(name) is not None, f"the {name} end is there to be killed", within_s=within_s
        )
        pid = self.pid(name)
        if pid is None:
            return self.kill(name, within_s=within_s)  # it has just died by itself
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.pid(name) != pid, f"the {name} end is dead")
        return pid

    def wait_for_new(self, name: str, dead: int) -> None:
        """Until another process than `dead` is the end, and says that it runs."""
        wait_for(
            lambda: self.pid(name) != dead and self.report(name).get("state") == "running",
            f"another {name} end runs",
        )

    def wait_until_applied(self, *, within_s: float = 120.0) -> None:
        """Until a row that is written now is on the target: everything before it is there then too."""
        mark = time.time_ns()
        source, target = self.servers[self.primary], self.servers[self.backup]
        source.execute(f"INSERT INTO acked VALUES (-1, {mark})", self.database)
        question = f"SELECT count(*) FROM acked WHERE client = -1 AND n = {mark}"
        wait_for(
            lambda: target.execute(question, self.database)[0][0] == 1,
            "what was written has been applied",
            within_s=within_s,
        )

    def dsn(self, node: str) -> str:
        return self.servers[node].dsn(self.database)


def _holder(lock: Path) -> int | None:
    """The living process named in a lock file that it holds."""
    try:
        pid = int(lock.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return pid if b"castling.groups.worker" in command and state != "Z" else None


def _toml_table(name: str, table: dict[str, Any]) -> list[str]:
    lines = [f"[{name}]"]
    tables = []
    for key, value in table.items():
        if isinstance(value, dict):
            tables += _toml_table(f"{name}.{key}", value)
        else:
            lines.append(f"{json.dumps(key) if '.' in key else key} = {json.dumps(value)}")
    return lines + tables
