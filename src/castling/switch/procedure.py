"""What a procedure is: numbered steps as data.

Nothing here does anything. A new step is a new line in `catalog`, and by that is shown in plans, run,
resumed, undone, documented, and killed before and after by the tests.
"""

from __future__ import annotations

import enum

import msgspec

__all__ = ["OnError", "Place", "Procedure", "Step"]


class Place(enum.StrEnum):
    """The node that a step is done on."""

    OLD = "old primary"  #: the primary when the run begins; of a reintroduction, the node that came back
    NEW = "new primary"  #: the primary when the run has ended; where no role changes, the backup
    BOTH = "both nodes"  #: the new primary first
    COORDINATOR = "coordinator"  #: the node that the run lives on


class OnError(enum.StrEnum):
    """What the failure of a step does to the run."""

    QUIT = "quit"  #: nothing more is begun; before the point of no return the run undoes itself
    CONTINUE = "continue"  #: it is noted, and the next step begins
    ASK = "ask"  #: a person decides: resume (again), override (without it) or abort


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One action. Its `name` says what is done (`steps.ACTIONS`), its `number` the order.

    `per_group`: done once for each group of the application, in their order, else once. `barrier`: begins
    when every group has ended the steps before it; without one a group goes ahead by itself. `approval`:
    waits for a person. `limit_s`: how long it may take. `overridable`: a person may go on without it, for
    one run. `undo`: what it did is undone when the run is rolled back.
    """

    number: int
    name: str
    title: str
    place: Place
    per_group: bool = True
    barrier: bool = False
    approval: bool = False
    limit_s: float = 60.0
    on_error: OnError = OnError.QUIT
    overridable: bool = False
    undo: bool = False


class Procedure(msgspec.Struct, frozen=True, kw_only=True):
    """Steps in order. `opens`: the step after which there is no way back; empty where there is none.
    `reverts`: a failure before it rolls the run back by itself. `gates`: what the preflight looks at.
    `clients`: what those who use the application notice. `failback`: the new primary is the configured one,
    unless another is named."""

    id: str
    title: str
    clients: str
    steps: tuple[Step, ...]
    gates: tuple[str, ...] = ()
    opens: str = ""
    reverts: bool = False
    failback: bool = False

    def __post_init__(self) -> None:
        numbers = [step.number for step in self.steps]
        assert numbers == sorted(set(numbers)), "steps are numbered in their order"
        assert len({step.name for step in self.steps}) == len(numbers), "a step is named once"
        assert self.opens or not self.reverts, "what reverts says until when"
        assert not self.opens or self.opens in {step.name for step in self.steps}, "an unknown step opens"
