"""A password is nowhere but where it was put: not in process lists, logs, answers, error texts or files.

A whole group is made, seeded, watched and diagnosed with databases whose passwords can be recognised, while
all command lines of the machine are read; in the end everything that was written or said is searched.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from castling.errors import StateError
from castling.testing.cluster import GROUP, Cluster, wait_for
from castling.testing.servers import EmbeddedServer

SECRET = EmbeddedServer.PASSWORD
WRONG = "not-the-right-one-31"


@contextmanager
def _process_lists() -> Iterator[set[bytes]]:
    """The command lines of all processes that ran meanwhile, as `ps` shows them to everybody."""
    seen: set[bytes] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.02):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        seen.add((entry / "cmdline").read_bytes())
                    except OSError:
                        continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def _holding(folder: Path, secret: str, *, but: Path) -> list[str]:
    """The files below `folder` that hold the secret, those in tar files too."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file() or path == but:
            continue
        if secret.encode() in path.read_bytes():
            found.append(str(path))
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for part in tar:
                    file = tar.extractfile(part)
                    if file is not None and secret.encode() in file.read():
                        found.append(f"{path}: {part.name}")
    return found


def test_a_password_is_nowhere_but_where_it_was_put() -> None:
    with _process_lists() as seen, Cluster() as cluster:
        east = cluster.servers["east"]
        east.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", cluster.database)
        east.execute(
            "INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 30000) i", cluster.database
        )
        _slow_definitions(cluster)
        cluster.start_group()
        cluster.servers["west"].execute("DROP EVENT TRIGGER slowly", cluster.database)
        password = cluster.folder / "password"
        said = [
            cluster.cli(node, *words)
            for node in ("east", "west")
            for words in (
                ("group", "status", GROUP),
                ("check", GROUP),
                ("group", "compare-schema", GROUP),
                ("node", "list"),
                ("deploy", "--dry-run"),
                ("diagnose", "--output", str(cluster.folder / f"{node}.tar")),
            )
            if node == "east" or words[0] != "deploy"
        ]
        # a wrong one is refused by the servers, and everybody is told; but not with it
        password.write_text(WRONG + "\n")
        for name in ("source", "apply"):
            cluster.kill(name)
        wait_for(lambda: bool(_errors(cluster)), "the ends say that they are refused")
        said += [cluster.cli("east", "group", "status", GROUP)]
        with pytest.raises(StateError, match="password authentication failed") as refused:
            cluster.cli("east", "check", GROUP)
        texts = [json.dumps(each) for each in said] + [str(refused.value)]
        for secret in (SECRET, WRONG):
            assert not [text for text in texts if secret in text]
            assert _holding(cluster.folder, secret, but=password) == []
            assert not [line for line in seen if secret.encode() in line]
        for program in ("pg_dump", "pg_restore", "castling.groups.worker"):
            assert [line for line in seen if program.encode() in line], f"{program} has not been seen"
        _control(cluster)


def _slow_definitions(cluster: Cluster) -> None:
    """Every definition takes the target a moment, so that the program that makes them can be seen."""
    for statement in (
        "CREATE FUNCTION pg_catalog.slowly() RETURNS event_trigger LANGUAGE plpgsql"
        " AS 'BEGIN PERFORM pg_sleep(0.3); END'",
        "CREATE EVENT TRIGGER slowly ON ddl_command_start EXECUTE FUNCTION pg_catalog.slowly()",
    ):
        cluster.servers["west"].execute(statement, cluster.database)


def _errors(cluster: Cluster) -> list[str]:
    ends = cluster.cli("east", "group", "status", GROUP)["data"]["streams"][0]["ends"]
    errors = [(end.get("error") or {}).get("message", "") for end in ends.values()]
    return [each for each in errors if "password authentication failed" in each]


def _control(cluster: Cluster) -> None:
    """What is searched for would be found."""
    leak = cluster.homes["west"] / "groups" / "leak.log"
    leak.write_text(f"connecting with password={SECRET}\n")
    with tarfile.open(cluster.folder / "leak.tar", "w") as tar:
        tar.add(leak)
    assert len(_holding(cluster.folder, SECRET, but=cluster.folder / "password")) >= 2
    with _process_lists() as seen:
        leaking = subprocess.Popen([sys.executable, "-c", "input()", SECRET], stdin=subprocess.PIPE)
        try:
            wait_for(lambda: any(SECRET.encode() in line for line in seen), "it shows in the process list")
        finally:
            leaking.kill()
            leaking.communicate()
