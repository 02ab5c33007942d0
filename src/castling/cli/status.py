"""How the report tree of a group looks to people. Pure: trees in, text out.

What is not known is shown as `unknown`, never as zero and never as a blank.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from castling.cli.output import columns

__all__ = ["HEAD", "bytes_text", "details", "one_line", "seconds_text", "table"]

Json = dict[str, Any]
HEAD = ("GROUP", "KIND", "ROLE", "LINK", "MODE", "CAPTURED", "HARDENED", "APPLIED", "LAG", "STATE")
BAR = 30
#: differing definitions that the status names
DIFFERING = 5


def table(trees: list[Json]) -> str:
    """One row per stream."""
    if not trees:
        return "no groups are deployed"
    rows = [_row(tree, stream) for tree in trees for stream in tree["streams"]]
    return columns(HEAD, rows)


def _row(tree: Json, stream: Json) -> list[str]:
    several = len(tree["streams"]) > 1
    positions = stream["positions"]
    return [
        f"{tree['group']}>{stream['backup']}" if several else tree["group"],
        tree["kind"],
        _role(tree),
        stream["link"],
        stream["mode"],
        *(positions[name] or "-" for name in ("captured", "hardened", "applied")),
        seconds_text(stream["apply_lag_s"]),
        stream["state"],
    ]


def _role(tree: Json) -> str:
    if tree["node"] == tree["primary"]:
        return "primary"
    return "backup" if tree["node"] in tree["backups"] else "-"


def seconds_text(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.1f}s"
    return f"{seconds / 60:.0f}m" if seconds < 7200 else f"{seconds / 3600:.1f}h"


def bytes_text(amount: float | None) -> str:
    if amount is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def details(tree: Json) -> str:
    """What stands below the table: lags, progress of the first copy, what is wrong and what to do."""
    lines: list[str] = _roles(tree)
    for stream in tree["streams"]:
        if stream["state"] not in ("stopped", "seeding"):
            lines.append(_lags(tree["group"], stream))
        if stream["state"] in ("seeding", "waiting", "starting") and _seeding(stream):
            lines += _seed(stream)
        lines += _beside(stream)
        lines += _left_behind(stream)
        lines += _definitions(tree["group"], stream)
        lines += _audit(tree["group"], stream)
        lines += _lanes(stream)
        # the receive end first: what keeps it from listening is the cause of what the source end sees
        for end in ("receive", "source", "apply"):
            lines += _trouble(stream["backup"], end, stream["ends"][end])
        lines += [line for line in _link_trouble(stream) if line.partition(": ")[2] not in "\n".join(lines)]
        lines += _room(stream)
        lines += _holds(stream)
        lines += _warnings(stream)
    return "\n".join(lines)


def _roles(tree: Json) -> list[str]:
    """Who is primary, where that is not what everybody would think."""
    configured = tree.get("configured_primary")  # an agent of before has none
    if configured in (None, tree["primary"]):
        return []
    told = f"{tree['group']}: {tree['primary']} is primary, in epoch {tree['epoch']}"
    return [f"{told} (castling.toml names {configured})"]


def _lags(group: str, stream: Json) -> str:
    told = [
        f"{what} {seconds_text(stream[now])}{_spread(stream[taken])}"
        for what, now, taken in (("RPO", "rpo_s", "rpo"), ("apply lag", "apply_lag_s", "apply_lag"))
    ]
    return f"{group} to {stream['backup']}: {', '.join(told)}"


def _beside(stream: Json) -> list[str]:
    """What is carried beside rows, and as of when the target has it."""
    if stream["state"] in ("stopped", "seeding"):
        return []
    lines = []
    for name, view in sorted((stream.get("beside") or {}).items()):  # an agent of before has none
        count = "unknown" if view.get("carried") is None else view["carried"]
        age = seconds_text(view.get("as_of_s"))
        if count:
            lines.append(f"{name} to {stream['backup']}: {count} carried, {age} old")
    return lines


def _left_behind(stream: Json) -> list[str]:
    names = stream.get("left_behind")  # an agent of before has none
    if not names:
        return []
    told = ", ".join(names[:DIFFERING]) + (", …" if len(names) > DIFFERING else "")
    return [f"{stream['backup']}: not in the log, so not carried: {told}"]


def _audit(group: str, stream: Json) -> list[str]:
    """How old the last full audit is, and what it came to; while one was never done, that."""
    if "audit" not in stream or stream["state"] == "seeding":  # an agent of before has none
        return []
    audit = stream["audit"] or {}
    age = seconds_text(audit.get("full_age_s"))
    told = f"last full audit of {stream['backup']}: {age}{'' if age == 'unknown' else ' ago'}"
    if age != "unknown" or audit.get("result") == "differs":
        told += f", {audit['result']}"
    if audit.get("open"):
        told += f", {audit['open']} open findings (`castling audit show {group}`)"
    return [told]


def _lanes(stream: Json) -> list[str]:
    """The sessions that apply beside each other, where there are several."""
    lanes = (stream["ends"]["apply"].get("target") or {}).get("lanes") or ()
    busy = sum(lane["busy"] for lane in lanes)
    tables = ", ".join(str(lane["tables"]) for lane in lanes)
    return [f"lanes on {stream['backup']}: {len(lanes)}, {busy} busy; tables: {tables}"] if lanes else []


def _definitions(group: str, stream: Json) -> list[str]:
    differ = (stream.get("definitions") or {}).get("differ")  # an agent of before has none
    if not differ:
        return []
    told = ", ".join(differ[:DIFFERING]) + (", …" if len(differ) > DIFFERING else "")
    return [
        f"{stream['backup']}: not as on the source: {told}",
        f"  hint: `castling group compare-schema {group}` shows each, and how to mend it",
    ]


def _spread(taken: Json | None) -> str:
    if not taken or not taken.get("samples"):
        return ""
    return f" (p50 {taken['p50']:.2f}s, p99 {taken['p99']:.2f}s, max {taken['max']:.2f}s)"


def _seeding(stream: Json) -> bool:
    seed = stream["seed"]
    return seed is not None and seed["phase"] not in ("planning", "done")


def _seed(stream: Json) -> list[str]:
    seed = stream["seed"]
    bar = _bar(seed["bytes"], seed["bytes_total"])
    eta = "" if seed["eta_s"] is None else f", {seconds_text(seed['eta_s'])} left"
    return [
        f"seed to {stream['backup']}: {bar}{seed['phase']}, {seed['rows']} rows, "
        f"{bytes_text(seed['bytes'])}, table {seed['tables_done']} of {seed['tables_total']}{eta}",
        *_attempts(seed),
    ]


def _attempts(seed: Json) -> list[str]:
    """Of a copy that broke off: what of it was kept."""
    attempts = seed.get("attempts", 1)  # an agent of before does not count them
    if attempts <= 1:
        return []
    return [f"  attempt {attempts}: {seed['rows_kept']} rows kept, {seed['rows_renewed']} read once more"]


def _bar(done: int, total: int | None) -> str:
    """Nothing when the whole is not known."""
    if not total:
        return ""
    share = min(1.0, done / total)
    return f"[{'#' * int(share * BAR):<{BAR}}] {share:4.0%}  "


def _trouble(backup: str, end: str, view: Json) -> list[str]:
    error = view.get("error")
    if not error:
        return []
    lines = [f"{end} to {backup}: error[{error['code']}]: {error['message']}"]
    if error.get("hint"):
        lines.append(f"  hint: {error['hint']}")
    return lines


def _link_trouble(stream: Json) -> list[str]:
    """Why the link is down, by the end that opens it."""
    error = (stream["ends"]["source"].get("link") or {}).get("last_error")
    if stream["link"] == "up" or stream["state"] == "stopped" or not error:
        return []
    return [f"link to {stream['backup']}: error[{error['code']}]: {error['message']}"]


def _room(stream: Json) -> list[str]:
    """A forecast below a day is worth a line."""
    lines = _spool(stream)
    journal = stream["ends"]["receive"].get("journal") or {}
    full_in_s = journal.get("full_in_s")
    if full_in_s is None or full_in_s > 86400:
        return lines
    left, free = seconds_text(max(0.0, full_in_s)), bytes_text(journal.get("free_bytes"))
    return [*lines, f"journal on {stream['backup']}: full in {left} at this rate ({free} free)"]


def _spool(stream: Json) -> list[str]:
    """What waits on the capture's node, while anything does."""
    spool = stream["ends"]["source"].get("spool") or {}
    if spool.get("state") in (None, "empty"):
        return []
    full_in_s = spool.get("full_in_s")
    left = "" if full_in_s is None else f", full in {seconds_text(full_in_s)} at this rate"
    unsent = bytes_text(spool.get("unsent_bytes"))
    return [f"spool for {stream['backup']}: {spool['state']}, {unsent} not on the backup{left}"]


def _holds(stream: Json) -> list[str]:
    return [
        f"{hold['part']} on {stream['backup']}: {hold['state']} for {seconds_text(hold['age_s'])},"
        f" keeps {bytes_text(hold['pinned_bytes'])} of the journal{_copy(hold.get('copy'))}"
        for hold in stream.get("holds") or ()
    ]


def _copy(copy: Json | None) -> str:
    if not copy:
        return ""
    return f", {_bar(copy['bytes'], copy['bytes_total'])}{copy['rows']} rows, {bytes_text(copy['bytes'])}"


def _warnings(stream: Json) -> list[str]:
    lines = []
    for warning in stream.get("warnings") or ():  # an agent of before has none
        lines.append(f"{stream['backup']}: warning[{warning['code']}]: {warning['message']}")
        if warning.get("hint"):
            lines.append(f"  hint: {warning['hint']}")
    return lines


def one_line(tree: Json) -> Iterable[str]:
    """A line per stream for a watch off a terminal; figures that always move are left out."""
    for stream in tree["streams"]:
        errors = [view["error"]["code"] for view in stream["ends"].values() if view.get("error")]
        errors += [warning["code"] for warning in stream.get("warnings") or ()]
        told = f"{tree['group']} to {stream['backup']}: {stream['state']}"
        told += f", link {stream['link']}, {stream['mode']}"
        if _seeding(stream):
            told += f", seed {stream['seed']['phase']}"
        yield told + (f", {', '.join(errors)}" if errors else "")
