"""A change of roles by its moves alone, in the order of a procedure, and clients beside it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import psycopg

from castling.testing.cluster import GROUP, Cluster

Told = dict[str, Any]


async def prepare(cluster: Cluster, *, grace_s: float = 5.0) -> Told:
    """Everything up to the point of no return."""
    old, new = cluster.primary, cluster.backup
    primary, to = cluster.node(old), cluster.node(new)
    epoch = (await to.roles())[GROUP]["epoch"] + 1
    for node in (primary, to):
        found = (await node.switch_check(GROUP, new))["findings"]
        assert not [each for each in found if each["severity"] == "refused"], found
    times = [("begin", time.monotonic())]

    def note(step: str) -> None:
        times.append((step, time.monotonic()))

    await to.fence(GROUP, epoch, new, grace_s)
    note("shut")
    fenced = await primary.fence(GROUP, epoch, new, grace_s)
    note("fence")
    marked = await primary.mark(GROUP)
    note("mark")
    await to.drained(GROUP, marked["offset"], 60)
    note("drained")
    await to.carry(GROUP, marked["final"])
    note("carry")
    begin = (await to.prepare_source(GROUP, epoch))["begin"]
    note("prepare_source")
    await primary.prepare_target(GROUP, epoch, new, begin)
    note("prepare_target")
    return {"epoch": epoch, "old": old, "new": new, "fenced": fenced, "times": times, "begin": begin}


async def finish(cluster: Cluster, told: Told) -> Told:
    """The point of no return, and what comes behind it."""
    primary, to = cluster.node(told["old"]), cluster.node(told["new"])
    await to.promote(GROUP, told["epoch"], "a test")
    told["times"].append(("promote", time.monotonic()))
    await primary.take_role(GROUP, told["epoch"], told["new"], "a test")
    told["times"].append(("take_role", time.monotonic()))
    steps = zip(told["times"], told["times"][1:], strict=False)
    told["took"] = {later[0]: round(later[1] - before[1], 3) for before, later in steps}
    return told


def switch(cluster: Cluster, **more: Any) -> Told:
    async def run() -> Told:
        return await finish(cluster, await prepare(cluster, **more))

    return asyncio.run(run())


def leave(cluster: Cluster) -> None:
    for name in cluster.homes:
        asyncio.run(cluster.node(name).leave(GROUP))


class Clients:
    """Write a counter each through libpq's own choice of the primary, and know what was acknowledged."""

    def __init__(self, cluster: Cluster, number: int = 3) -> None:
        servers = [cluster.servers[node] for node in cluster.homes]
        self._where = {
            "host": ",".join("127.0.0.1" for _ in servers),
            "port": ",".join(str(server.port) for server in servers),
            "dbname": cluster.database,
            "user": servers[0].USER,
            "password": servers[0].PASSWORD,
            "target_session_attrs": "read-write",
            "connect_timeout": "5",
        }
        self.acknowledged: set[tuple[int, int]] = set()
        self.maybe: set[tuple[int, int]] = set()
        self.errors: list[str] = []
        self.longest_s = 0.0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in range(number)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        n, last = number * 1_000_000, time.monotonic()
        while not self._stop.is_set():
            try:
                with psycopg.connect(**self._where) as connection:  # type: ignore[arg-type]
                    while not self._stop.is_set():
                        n += 1
                        self.maybe.add((100 + number, n))
                        connection.execute("INSERT INTO public.acked VALUES (%s, %s)", (100 + number, n))
                        connection.commit()
                        self.acknowledged.add((100 + number, n))
                        now = time.monotonic()
                        self.longest_s, last = max(self.longest_s, now - last), now
                        time.sleep(0.002)
            except psycopg.Error as error:
                self.errors.append(str(error).splitlines()[0])
                time.sleep(0.02)

    def rows(self, cluster: Cluster, node: str) -> set[tuple[int, int]]:
        rows = cluster.servers[node].execute(
            "SELECT client, n FROM public.acked WHERE client >= 100", cluster.database
        )
        return {(int(client), int(n)) for client, n in rows}
