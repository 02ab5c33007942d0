"""The procedures that are shipped. Data, and nothing else: `docs/procedures.md` tells their story.

Numbers leave room. Whatever must be over before clients may write on the new primary stands before `open`; of
that, whatever clients would wait for without need stands before `fence`.
"""

from __future__ import annotations

import msgspec

from castling.errors import NotFound
from castling.switch.procedure import OnError, Place, Procedure, Step

__all__ = ["PROCEDURES", "procedure"]

_OLD, _NEW, _BOTH = Place.OLD, Place.NEW, Place.BOTH

_STOP_APPLICATION = Step(
    number=10,
    name="stop-application",
    title="Stop what writes, by your script",
    place=_OLD,
    per_group=False,
    limit_s=600,
    undo=True,
)
_MARK = Step(number=50, name="mark", title="Write a mark behind the last change", place=_OLD, limit_s=30)
_DRAIN = Step(
    number=60,
    name="drain",
    title="Wait until all up to the mark is received and applied",
    place=_NEW,
    limit_s=300,
)
_PREPARE_NEW = Step(
    number=90, name="prepare-new", title="Make the beginning of the reverse stream", place=_NEW, undo=True
)
_OPEN = Step(
    number=110,
    name="open",
    title="Raise the epoch, and open the new primary for writers",
    place=_NEW,
    barrier=True,
)
_HALT = Step(number=80, name="halt", title="Stop the group on all nodes", place=_OLD, limit_s=120)


def _at(number: int, step: Step) -> Step:
    return msgspec.structs.replace(step, number=number)


def _move_over(first: int) -> tuple[Step, ...]:
    """From the opened new primary to users that work on it."""
    return (
        Step(
            number=first,
            name="resume",
            title="Lead the pooler to the new primary and let clients go on",
            place=_NEW,
            on_error=OnError.ASK,
            overridable=True,
        ),
        Step(
            number=first + 10,
            name="move-users",
            title="Lead users to the new primary, by your script",
            place=Place.COORDINATOR,
            per_group=False,
            limit_s=600,
            on_error=OnError.ASK,
            overridable=True,
        ),
        Step(
            number=first + 20,
            name="start-application",
            title="Start what writes, by your script",
            place=_NEW,
            per_group=False,
            limit_s=600,
            on_error=OnError.ASK,
            overridable=True,
        ),
    )


_REVERSE = Step(
    number=150,
    name="reverse",
    title="Run the stream in the new direction",
    place=_BOTH,
    limit_s=300,
    on_error=OnError.ASK,
    overridable=True,
)
_LEAVE = Step(
    number=160,
    name="leave",
    title="Remove what the former direction left",
    place=_BOTH,
    limit_s=120,
    on_error=OnError.CONTINUE,
)
_PAUSE = Step(
    number=20, name="pause", title="Let poolers hold clients back", place=_NEW, limit_s=30, undo=True
)

_SWITCH = (
    _STOP_APPLICATION,
    _at(30, msgspec.structs.replace(_PAUSE, barrier=True)),
    Step(
        number=40,
        name="fence",
        title="Fence the old primary: no write can commit there any more",
        place=_OLD,
        undo=True,
    ),
    _MARK,
    _DRAIN,
    Step(number=70, name="prove", title="Prove that both positions are equal", place=_OLD, limit_s=30),
    Step(
        number=80,
        name="carry",
        title="Carry what the stream does not: sequences exactly, unlogged tables",
        place=_NEW,
        limit_s=300,
    ),
    _PREPARE_NEW,
    Step(
        number=100,
        name="prepare-old",
        title="Make the other nodes ready to follow, without a copy",
        place=_OLD,
        undo=True,
    ),
    _OPEN,
    *_move_over(120),
    _REVERSE,
    _LEAVE,
)
_SWITCH_GATES = (
    "switchable",
    "streams",
    "audit",
    "lag",
    "holds",
    "sequences",
    "foreign-writes",
    "disk",
    "clocks",
    "scripts",
)

PROCEDURES = {
    each.id: each
    for each in (
        Procedure(
            id="start",
            title="Start",
            clients="nothing",
            gates=("nodes",),
            steps=(
                Step(number=10, name="check", title="Check what can be replicated", place=_OLD, limit_s=180),
                Step(number=20, name="run", title="Run the group on all nodes", place=_OLD, limit_s=120),
                Step(
                    number=30,
                    name="running",
                    title="Wait until the stream runs",
                    place=_NEW,
                    limit_s=86_400,
                    on_error=OnError.ASK,
                    overridable=True,
                ),
            ),
        ),
        Procedure(
            id="end",
            title="End, controlled",
            clients="nothing; what they write from then on is not protected",
            gates=("nodes",),
            steps=(_MARK, _DRAIN, _HALT),
        ),
        Procedure(
            id="end-immediate",
            title="End, at once",
            clients="nothing; what they write from then on is not protected",
            steps=(_HALT,),
        ),
        Procedure(
            id="planned",
            title="Planned switch",
            clients="behind a pooler a pause; else their sessions on the old primary end",
            gates=_SWITCH_GATES,
            opens="open",
            reverts=True,
            steps=_SWITCH,
        ),
        Procedure(
            id="failback",
            title="Failback",
            clients="behind a pooler a pause; else their sessions on the old primary end",
            gates=_SWITCH_GATES,
            opens="open",
            reverts=True,
            failback=True,
            steps=_SWITCH,
        ),
        Procedure(
            id="unplanned",
            title="Unplanned switch",
            clients="what was not received by the backup is lost for them until it is reintroduced",
            gates=("loss", "scripts"),
            opens="open",
            steps=(
                Step(number=10, name="loss", title="Note what may be lost", place=_NEW, limit_s=30),
                msgspec.structs.replace(_PAUSE, on_error=OnError.CONTINUE, limit_s=10),
                Step(
                    number=30,
                    name="fence",
                    title="Fence the old primary, if it can be reached",
                    place=_OLD,
                    limit_s=3,
                    on_error=OnError.CONTINUE,
                ),
                Step(
                    number=40,
                    name="apply-all",
                    title="Receive nothing more, and apply all that was received",
                    place=_NEW,
                    limit_s=3600,
                    undo=True,
                ),
                _PREPARE_NEW,
                _OPEN,
                *_move_over(120),
            ),
        ),
        Procedure(
            id="reintroduce",
            title="Reintroduce a failed node",
            clients="nothing",
            gates=("nodes",),
            steps=(
                Step(
                    number=10, name="fenced", title="Fence the node that came back", place=_OLD, limit_s=120
                ),
                Step(
                    number=20,
                    name="orphans",
                    title="Keep what it had committed and nobody else has",
                    place=_OLD,
                    limit_s=600,
                ),
                Step(
                    number=30,
                    name="revert",
                    title="Make its rows those of the primary again",
                    place=_OLD,
                    limit_s=3600,
                ),
                _at(40, _REVERSE),
                _at(50, _LEAVE),
            ),
        ),
        Procedure(
            id="node-shutdown",
            title="Shutdown of the primary's node",
            clients="the application is stopped by your script",
            gates=("nodes", "scripts"),
            steps=(_STOP_APPLICATION, _MARK, _DRAIN, _HALT),
        ),
    )
}


def procedure(name: str) -> Procedure:
    """The shipped procedure of that name; NotFound names all."""
    if name not in PROCEDURES:
        raise NotFound(f"there is no procedure {name!r}", hint=f"procedures: {', '.join(PROCEDURES)}")
    return PROCEDURES[name]
