"""A thousand tables: the check judges each, and asks the servers no more often than for a few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.real.pg_cast import Pair, database_pair
from tests.real.test_seed import _CREATE

from castling.kinds.postgres.kind import KIND
from castling.testing.servers import EmbeddedServer

#: tables made in one transaction: each takes locks
_AT_ONCE = 250


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        yield made


def _make(pair: Pair, tables: int) -> None:
    for first in range(1, tables + 1, _AT_ONCE):
        pair.source(
            f"DO $$ BEGIN FOR i IN {first}..{min(first + _AT_ONCE - 1, tables)} LOOP"
            " EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text)', i); END LOOP; END $$"
        )


async def test_a_thousand_tables_are_checked_one_by_one(pair: Pair) -> None:
    _make(pair, 1000)
    pair.source("CREATE TABLE keyless (v int); CREATE FOREIGN DATA WRAPPER none; CREATE SERVER s FOREIGN DATA"
                " WRAPPER none; CREATE FOREIGN TABLE elsewhere (v int) SERVER s")  # fmt: skip
    found = await KIND.check(pair.stream(seed=_CREATE))
    told = Counter(one.code for one in found)
    assert told["replicated"] == 1000
    assert {one.object for one in found if one.code in ("sets-identity-full", "foreign-table")} == {
        "public.keyless",
        "public.elsewhere",
    }
