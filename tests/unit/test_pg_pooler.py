"""The line of a database in PgBouncer's file: its address changes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from castling.errors import PoolerFailed
from castling.kinds.postgres.pooler import lead, repointed


@pytest.mark.parametrize(
    ("line", "led"),
    [
        ("bank = host=a port=1 dbname=bank\n", "bank = host=b port=2 dbname=bank\n"),
        ("bank= dbname=x pool_size=5\n", "bank= host=b port=2 dbname=x pool_size=5\n"),
        (
            "\"bank\" = port=1 password='a host=c' host='a'\n",
            "\"bank\" = port=2 password='a host=c' host=b\n",
        ),
    ],
)
def test_only_host_and_port_of_the_line_change(line: str, led: str) -> None:
    around = "; bank = host=z\nother = host=a port=1\n"
    assert repointed(around + line, "bank", "b:2") == around + led
    assert repointed(around + led, "bank", "b:2") == around + led, "again changes nothing"


def test_a_file_without_the_line_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "castling.ini"
    file.write_text("other = host=a\n")
    with pytest.raises(PoolerFailed, match="no line of bank"):
        lead(file, "bank", "b:2")
    assert file.read_text() == "other = host=a\n"
