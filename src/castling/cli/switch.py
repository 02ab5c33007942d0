"""Commands of procedures: castling switch plan, start, resume, approve, override, abort, acknowledge,
history, show."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from castling.cli.output import Result, ask, columns, say
from castling.cli.session import Session, Yes, command
from castling.errors import AgentUnreachable, FindingsExist, StepFailed, UsageError

__all__ = ["register"]

#: longer than the preflight may take, seconds
START_S = 75.0
#: seconds between two looks at a run that is followed
_LOOK_S = 0.3
_RESTING = ("waiting", "failed", "completed", "completed-with-errors", "rolled-back", "aborted")

Application = Annotated[
    str, typer.Argument(help="Name of the application, or of a group that is one by itself.")
]
Run = Annotated[str, typer.Argument(help="Id of the run; `castling switch history` lists them.")]
Step = Annotated[str, typer.Argument(help="Name or number of the step.")]
OfGroup = Annotated[
    str | None,
    typer.Option("--group", envvar="CASTLING_GROUP", help="Of this group, where several have the step."),
]
Reason = Annotated[str, typer.Option("--reason", envvar="CASTLING_REASON", help="Why; kept in the history.")]
Procedure = Annotated[
    str | None,
    typer.Option("--procedure", envvar="CASTLING_PROCEDURE", help="Which procedure; default planned."),
]
Unplanned = Annotated[
    bool,
    typer.Option(
        "--unplanned", envvar="CASTLING_UNPLANNED", help="The primary is lost: procedure unplanned."
    ),
]
Failback = Annotated[
    bool,
    typer.Option(
        "--failback", envvar="CASTLING_FAILBACK", help="Back to the configured primary: procedure failback."
    ),
]
To = Annotated[
    str | None,
    typer.Option("--to", envvar="CASTLING_TO", help="The new primary, or the node that is reintroduced."),
]
NoWait = Annotated[
    bool,
    typer.Option(
        "--no-wait", envvar="CASTLING_NO_WAIT", help="Return at once; `castling switch show` follows."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    switch = typer.Typer(help="Procedures: switch roles, start, end, reintroduce.", no_args_is_help=True)
    command(switch, "plan")(_plan)
    command(switch, "start")(_start)
    command(switch, "resume")(_resume)
    command(switch, "approve")(_approve)
    command(switch, "override")(_override)
    command(switch, "abort")(_abort)
    command(switch, "acknowledge")(_acknowledge)
    command(switch, "history")(_history)
    command(switch, "show")(_show)
    app.add_typer(switch, name="switch")


# --- before it begins -------------------------------------------------------------------------


def _chosen(procedure: str | None, unplanned: bool, failback: bool) -> str:
    named = [
        name
        for name in (procedure, "unplanned" if unplanned else None, "failback" if failback else None)
        if name
    ]
    if len(named) > 1:
        raise UsageError(f"which procedure: {' or '.join(named)}?")
    return named[0] if named else "planned"


def _plan(
    session: Session,
    application: Application,
    procedure: Procedure = None,
    unplanned: Unplanned = False,
    failback: Failback = False,
    to: To = None,
) -> Result:
    """Show every step and what the preflight finds. Changes nothing; exit code 3 if it would be refused."""
    data = _planned(session, application, _chosen(procedure, unplanned, failback), to)
    return Result(data, _plan_text(data), FindingsExist.exit_code if data["refused"] else 0)


def _planned(session: Session, application: str, procedure: str, to: str | None) -> dict[str, Any]:
    body = {"application": application, "procedure": procedure, "to": to}
    found: dict[str, Any] = session.call("POST", "/v1/switches/plan", body, timeout_s=START_S)
    return found


def _plan_text(data: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"{data['title']} of {data['application']}: {data['old']} -> {data['new']}",
            f"Clients notice: {data['clients']}.",
            "",
            _steps_text(data["steps"], planned=True),
            "",
            *_findings_text(data["findings"]),
            "",
            f"refused: {data['refused']} gates are closed"
            if data["refused"]
            else "nothing keeps it from starting",
        ]
    )


def _findings_text(findings: list[dict[str, Any]]) -> list[str]:
    lines = []
    for each in findings:
        lines.append(f"{each['severity'].upper():8} {each['gate']:15} {each['object']}: {each['message']}")
        if each["hint"]:
            lines.append(f"{'':24} hint: {each['hint']}")
    return lines


def _steps_text(steps: list[dict[str, Any]], *, planned: bool = False) -> str:
    rows = []
    for step in steps:
        mark = ("waits for a person" if step.get("approval") else "") if planned else step["state"]
        if planned and step["opens"]:
            mark = "no way back"
        took = "" if planned or step["duration_s"] is None else f"{step['duration_s']:.3f} s"
        rows.append(
            [str(step["number"]), step["name"], step["group"] or "", ",".join(step["nodes"]), mark, took]
        )
    heads = ["STEP", "NAME", "GROUP", "NODE", "" if planned else "STATE", "" if planned else "TOOK"]
    return columns(heads, rows)


def _start(
    session: Session,
    application: Application,
    procedure: Procedure = None,
    unplanned: Unplanned = False,
    failback: Failback = False,
    to: To = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--override", envvar="CASTLING_OVERRIDE", help="A gate to pass over, for this run; repeatable."
        ),
    ] = None,
    no_wait: NoWait = False,
    yes: Yes = False,
) -> Result:
    """Show the plan, ask, run it and follow it. Exit code 62 when a step failed; the run can be resumed."""
    name = _chosen(procedure, unplanned, failback)
    if not yes:
        plan = _planned(session, application, name, to)
        say(_plan_text(plan))
        if not ask(f"Run {plan['title'].lower()} of {application}, {plan['old']} -> {plan['new']}?"):
            raise UsageError("not confirmed; nothing was changed", hint="--yes starts without asking")
    body = {"application": application, "procedure": name, "to": to, "overrides": override or []}
    data = session.call("POST", "/v1/switches", body, timeout_s=START_S)
    return _followed(session, data, no_wait)


# --- while it runs ----------------------------------------------------------------------------


def _followed(session: Session, data: dict[str, Any], no_wait: bool) -> Result:
    """The run when it rests: it has ended, or waits for a person."""
    told: set[tuple[int, str | None, str]] = set()
    while not no_wait:
        _tell_changes(data, told)
        if data["status"] in _RESTING:
            break
        time.sleep(_LOOK_S)
        try:
            data = session.call("GET", f"/v1/switches/{data['run']}")
        except AgentUnreachable as error:
            say(f"unknown: {error}")
    return Result(data, _run_text(data), _code(data))


def _tell_changes(data: dict[str, Any], told: set[tuple[int, str | None, str]]) -> None:
    for step in data["steps"]:
        key = (step["number"], step["group"], step["state"])
        if step["state"] in ("pending", "active") or key in told:
            continue
        told.add(key)
        of = f" of {step['group']}" if step["group"] else ""
        why = f": {step['error']['message']}" if step["error"] else ""
        say(f"{step['number']} {step['name']}{of}: {step['state']}{why}")


def _code(data: dict[str, Any]) -> int:
    return StepFailed.exit_code if data["status"] in ("failed", "rolled-back", "waiting") else 0


def _run_text(data: dict[str, Any]) -> str:
    figures = [
        f"{label} {data[key]:.3f} s"
        for key, label in (
            ("duration_s", "took"),
            ("pause_s", "clients paused"),
            ("rto_s", "RTO"),
            ("rpo_s", "RPO"),
        )
        if data[key] is not None
    ]
    lines = [
        f"{data['title']} of {data['application']}, {data['old']} -> {data['new']}: {data['status']}",
        f"run {data['run']}" + (f"; {', '.join(figures)}" if figures else ""),
    ]
    if data["asks"]:
        lines.append(f"waits: {data['asks']}")
    for step in data["steps"]:
        if step["error"]:
            lines.append(
                f"error[{step['error']['code']}] step {step['number']} {step['name']}: "
                f"{step['error']['message']}"
            )
            if step["error"]["hint"]:
                lines.append(f"hint: {step['error']['hint']}")
    return "\n".join(lines)


def _told(session: Session, run: str, word: str, **more: Any) -> dict[str, Any]:
    body = {"word": word, "step": None, "group": None, "reason": "", **more}
    found: dict[str, Any] = session.call("POST", f"/v1/switches/{run}", body, timeout_s=START_S)
    return found


def _resume(session: Session, run: Run, no_wait: NoWait = False) -> Result:
    """Go on with a run that failed or waits, at the step where it stands; days later, too."""
    return _followed(session, _told(session, run, "resume"), no_wait)


def _approve(
    session: Session,
    run: Run,
    step: Step,
    group: OfGroup = None,
    reason: Reason = "",
    no_wait: NoWait = False,
) -> Result:
    """Let a step begin that waits for a person."""
    return _followed(session, _told(session, run, "approve", step=step, group=group, reason=reason), no_wait)


def _override(
    session: Session,
    run: Run,
    step: Step,
    group: OfGroup = None,
    reason: Reason = "",
    yes: Yes = False,
    no_wait: NoWait = False,
) -> Result:
    """Go on without a step that failed, for this run. Required steps can't be overridden."""
    if not (yes or ask(f"Go on without step {step}?")):
        raise UsageError("not confirmed; nothing was changed", hint="--yes overrides without asking")
    return _followed(session, _told(session, run, "override", step=step, group=group, reason=reason), no_wait)


def _abort(session: Session, run: Run, yes: Yes = False, no_wait: NoWait = False) -> Result:
    """Undo what a run has done. Refused once the new primary may have been opened."""
    if not (yes or ask(f"Abort run {run}, and undo what it has done?")):
        raise UsageError("not confirmed; nothing was changed", hint="--yes aborts without asking")
    return _followed(session, _told(session, run, "abort"), no_wait)


def _acknowledge(session: Session, run: Run) -> Result:
    """Say that you have seen a run that failed: the same procedure may start anew. It is not resumed then."""
    data = _told(session, run, "acknowledge")
    return Result(data, f"acknowledged: {run} ({data['status']})")


# --- looking ----------------------------------------------------------------------------------


def _history(
    session: Session,
    limit: Annotated[
        int, typer.Option("--limit", envvar="CASTLING_LIMIT", min=1, max=1000, help="At most so many.")
    ] = 20,
) -> Result:
    """List the runs of all nodes with what was measured, newest first."""
    data = session.call("GET", f"/v1/switches?limit={limit}")
    rows = [
        [
            each["run"],
            each["application"],
            each["procedure"],
            f"{each['old']}->{each['new']}",
            each["status"] + (" (acknowledged)" if each["acknowledged_by"] else ""),
            *(_figure(each[key]) for key in ("duration_s", "pause_s", "rto_s", "rpo_s")),
        ]
        for each in data["runs"]
    ]
    heads = ["RUN", "APPLICATION", "PROCEDURE", "NODES", "STATUS", "TOOK", "PAUSE", "RTO", "RPO"]
    silent = [f"unknown: {why}" for _, why in sorted(data["unknown"].items())]
    return Result(data, "\n".join([columns(heads, rows), *silent]))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"


def _show(session: Session, run: Run) -> Result:
    """Show a run: its steps, what they found, what scripts said. --json is its evidence report."""
    data = session.call("GET", f"/v1/switches/{run}")
    said = [
        f"\n{output['script']} (code {output['exit_code']}, {output['seconds']} s):\n"
        + output["output"].rstrip()
        for step in data["steps"]
        for output in step["outputs"]
    ]
    return Result(data, "\n".join([_run_text(data), "", _steps_text(data["steps"]), *said]))
