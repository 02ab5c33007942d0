"""Random faults on real servers, real processes and a real link: nothing lost, nothing twice."""

from __future__ import annotations

import pytest
from tests.real.fault_cast import bank_cluster, injected, proven_equal

from castling.testing.faults import KILLS, FaultKind, StrictReader, schedule

_SUM = "SELECT sum(balance) FROM account"


def _survives(seed: int, number: int, **group: object) -> None:
    with bank_cluster(**group) as (cluster, bank):
        # strict visibility holds from when what was committed during the first copy is applied
        cluster.wait_until_applied()
        with StrictReader(cluster.dsn("west"), _SUM) as reader:
            done = injected(cluster, schedule(seed, number))
            proven_equal(cluster, bank)
        assert len(reader.answers) == 1, (
            f"the replica has shown states that the source never had: {reader.answers}"
        )
        assert reader.reads > 20
        assert sum(done.values()) >= number * 9 // 10, done
        # at least 200 in all runs of `make test-faults`, two dozen in `make test`
        assert sum(done[kind] for kind in KILLS) >= number * 9 // 20, done


def test_a_few_dozen_faults() -> None:
    _survives(seed=1, number=40)


def test_faults_in_sync_delivery() -> None:
    _survives(seed=2, number=16, delivery="sync", on_sync_loss="wait")


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(100, 107))
def test_many_faults(seed: int) -> None:
    _survives(seed, number=50)


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(200, 203))
def test_many_faults_in_sync_delivery(seed: int) -> None:
    _survives(seed, number=40, delivery="sync", on_sync_loss="wait")


def test_a_schedule_can_be_had_again_and_holds_every_kind() -> None:
    faults = schedule(7, 40)
    assert faults == schedule(7, 40) != schedule(8, 40)
    assert {fault.kind for fault in faults} == set(FaultKind)
