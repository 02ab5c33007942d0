"""What an older server does not know is left out of a dump's head, and nothing else is touched."""

from __future__ import annotations

import pytest

from castling.kinds.postgres.seed_archive import for_server

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
