"""What an older server does not know is left out of a dump's head, and nothing else is touched."""

from __future__ import annotations

import pytest

from castling.kinds.postgres.seed_older import for_server

_SCRIPT = b"""--
-- PostgreSQL database dump
--

\\restrict abc

SET statement_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SELECT pg_catalog.set_config('search_path', '', false);
SET row_security = off;

CREATE FUNCTION public.f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
SET transaction_timeout = 0;
END $$;
"""


@pytest.mark.parametrize("version", [150018, 160000])
def test_what_an_older_server_lacks_is_left_out(version: int) -> None:
    done = for_server(_SCRIPT, version)
    assert done == _SCRIPT.replace(b"SET transaction_timeout = 0;\n", b"\n", 1)
    assert done.count(b"transaction_timeout") == 1, "the body of a function is not the head"


def test_a_server_that_has_it_gets_it() -> None:
    assert for_server(_SCRIPT, 170000) == _SCRIPT


_TABLES = b"""
CREATE TABLE a.dogs (
    breed text DEFAULT 'x);
    NOT NULL id,' NOT NULL,
    CHECK ((breed <> $q$;,('"$q$::text)),
    CONSTRAINT "dogs,id" NOT NULL "i,d",
    NOT NULL other
)
INHERITS (a.animals);


--
-- Name: only; CREATE TABLE a.b (
--

CREATE UNLOGGED TABLE "Only" (
    NOT NULL id
)
INHERITS (a.animals);

CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $_$ CREATE TABLE c (
    NOT NULL id
); $_$;
"""


def test_not_null_of_a_parents_column_becomes_a_statement_of_its_own() -> None:
    done = for_server(_TABLES, 150000)
    assert done == (
        _TABLES.replace(b',\n    CONSTRAINT "dogs,id" NOT NULL "i,d",\n    NOT NULL other', b"")
        .replace(b"    NOT NULL id\n)\nI", b")\nI")
        .replace(
            b"INHERITS (a.animals);",
            b"INHERITS (a.animals);\n"
            b'ALTER TABLE ONLY a.dogs ALTER COLUMN "i,d" SET NOT NULL;\n'
            b"ALTER TABLE ONLY a.dogs ALTER COLUMN other SET NOT NULL;",
            1,
        )
        .replace(
            b"INHERITS (a.animals);\n\nC",
            b'INHERITS (a.animals);\nALTER TABLE ONLY "Only" ALTER COLUMN id SET NOT NULL;\n\nC',
        )
    )
    assert for_server(_TABLES, 180000) == _TABLES
