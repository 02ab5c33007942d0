"""Writes the generated pages of docs/reference from what the program itself says.

`python -m castling.cli.reference` writes them; a test compares them with what is there.
So a page can't tell of an option, an error or a setting that does not exist.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import typer

from castling import errors
from castling.cli.main import build
from castling.cli.results import RESULTS
from castling.config import settings
from castling.control.metrics import END_METRICS, STREAM_METRICS
from castling.control.routes import ENDPOINTS

__all__ = ["main", "pages"]

_HEAD = "<!-- written by `make docs`; change the program, not this page -->\n\n"

_COMMANDS_HEAD = """\
# Commands

Results go to stdout, everything else to stderr. Exit codes: [errors](errors.md); 130 after
Ctrl-C. `--json` prints the result as [JSON](json.md). Every option can be given by its
environment variable.
"""
_SETTINGS_HEAD = """\
# Settings

The tables of `castling.toml`. Sizes may be written with a unit (`64MiB`, `10GB`), times too
(`500ms`, `15m`, `24h`, `7d`), rates per second (`10MiB/s`). Names of nodes and groups have 1
to 40 of `a-z`, `0-9`, `_`, `-`. What can't be accepted is named with its line and key.
"""
_ERRORS_HEAD = """\
# Errors and exit codes

The exit code says whose fault it is: 0 fine, 1 unexpected, 2 the call, 3 something was
found, 4 and 5 an audit had to wait or was stopped, 10-19 configuration and local state,
20-29 source, 30-39 target, 40-44 journal, 45-49 link, 50-59 roles, 60-69 procedures,
130 interrupted.
*Retryable*: the same call may succeed later without anybody acting; what runs tries again
by itself.
"""
_METRICS_HEAD = """\
# Metrics

`GET /metrics` of an agent (role viewer) tells them in Prometheus' text form for every group of
the node's deployment. What is not known has no sample: alert on absence as on a bad value.
A node's certificate names the node, `localhost` and the loopback addresses; at any other
address it is verified by the node's name: `server_name` in Prometheus' `tls_config`, or
`curl --cacert ca.pem --resolve east:7430:ADDRESS https://east:7430/metrics`, with `ca.pem`
from the node's folder `ca`. `packaging/alerts.yaml` has alert rules, `packaging/grafana.json` a dashboard.
"""
_API_HEAD = """\
# API

HTTPS, TLS 1.3, on the node's `api` address. Users send `Authorization: Bearer TOKEN`; nodes
show their certificate. Every answer is `{"ok": true, "data": …}` or `{"ok": false, "error":
{"code", "message", "hint", "retryable", "exit_code", "context"}}`, also for unknown paths.
Each role may do what the one before it may: viewer, operator, admin. `/metrics` answers in
Prometheus' form. `/groups/{group}/ready?rpo_s=5&lag_s=30` (and below `/v1`) answers 503 while a
stream does not run or is further behind than that (`rpo_s`: not hardened, as `lag_s` without it);
unknown is not ready. `/openapi.json` tells all of this as OpenAPI 3.1.
"""
_JSON_HEAD = """\
# JSON results

With `--json` a command prints `{"ok": true, "data": …}`, or `{"ok": false, "error": {…}}` with
`code`, `message`, `hint`, `retryable`, `exit_code` and `context` ([errors](errors.md)). Below
are the fields of `data`; `[]` goes into a list, `*` stands for any name. Ignore fields that you
don't know: new ones may come.
"""


def pages() -> dict[str, str]:
    """File name to content."""
    return {
        "commands.md": _HEAD + "\n".join(_commands()) + "\n",
        "settings.md": _HEAD + "\n".join(_settings()) + "\n",
        "errors.md": _HEAD + "\n".join(_errors()) + "\n",
        "metrics.md": _HEAD + "\n".join(_metrics()) + "\n",
        "api.md": _HEAD + "\n".join(_api()) + "\n",
        "json.md": _HEAD + "\n".join(_json()) + "\n",
    }


# --- commands ---------------------------------------------------------------------------------

_COMMON = {"home", "agent", "token_file", "json"}


def commands() -> Iterator[tuple[str, Any]]:
    """Every command as (its words, the command)."""

    def walk(words: tuple[str, ...], found: Any) -> Iterator[tuple[str, Any]]:
        inner = getattr(found, "commands", None)
        if inner is None:
            yield " ".join(words), found
        else:
            for name, each in inner.items():
                yield from walk((*words, name), each)

    yield from walk((), typer.main.get_command(build()))


def _commands() -> Iterator[str]:
    yield _COMMANDS_HEAD
    yield "Every command takes these:\n"
    every = list(commands())
    yield from _options([param for param in every[0][1].params if param.name in _COMMON])
    for words, found in every:
        yield f"\n## castling {words}\n"
        yield f"{inspect.cleandoc(found.help or '')}\n"
        yield f"    castling {words}{_usage(found)}\n"
        own = [param for param in found.params if param.name not in _COMMON and param.name != "help"]
        yield from _options(own)


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _usage(found: Any) -> str:
    told = ""
    for param in found.params:
        if _is_argument(param):
            name = _shown(param)
            told += f" {name}" if param.required else f" [{name}]"
        elif param.required:
            told += f" {param.opts[0]} {param.name.upper()}"
    return f"{told} [options]"


def _shown(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _options(params: list[Any]) -> Iterator[str]:
    if not params:
        return
    yield "| option | variable | what |\n| --- | --- | --- |"
    for param in params:
        name = (
            _shown(param).replace("|", "\\|")
            if _is_argument(param)
            else ", ".join(f"`{opt}`" for opt in param.opts)
        )
        variable = f"`{param.envvar}`" if param.envvar else ""
        what = str(param.help or "").replace("|", "\\|")
        if not _is_argument(param) and param.default not in (None, False) and not callable(param.default):
            what += f" Default: `{param.default}`."
        yield f"| {name} | {variable} | {what} |"


# --- settings ---------------------------------------------------------------------------------


def _settings() -> Iterator[str]:
    yield _SETTINGS_HEAD
    notes = _field_notes()
    for path, wanted in (
        ("installation", settings.InstallationSettings),
        ("nodes.NODE", settings.NodeSettings),
        ("groups.GROUP", settings.GroupSettings),
        ("groups.GROUP.databases.NODE", settings.DatabaseSettings),
        ("groups.GROUP.pooler.NODE", settings.PoolerSettings),
        ("groups.GROUP.retention", settings.RetentionSettings),
        ("groups.GROUP.link", settings.LinkSettings),
        ("groups.GROUP.seed", settings.SeedSettings),
        ("groups.GROUP.spool", settings.SpoolSettings),
        ("applications.APPLICATION", settings.ApplicationSettings),
    ):
        yield f"\n## [{path}]\n\n{inspect.getdoc(wanted)}\n"
        yield "| key | type | default | what |\n| --- | --- | --- | --- |"
        hints = get_type_hints(wanted, include_extras=True)
        for field in msgspec.structs.fields(wanted):
            if _is_table(hints[field.name]):
                continue
            what = notes[wanted.__name__].get(field.name, "")
            kind, default = _type(hints[field.name]), _default(field, hints[field.name])
            yield f"| `{field.name}` | {kind} | {default} | {what} |"


def _is_table(wanted: Any) -> bool:
    if get_origin(wanted) is dict:
        return _is_table(get_args(wanted)[1])
    return isinstance(wanted, type) and issubclass(wanted, msgspec.Struct)


def _unit(wanted: Any) -> str | None:
    marks = [mark for mark in getattr(wanted, "__metadata__", ()) if isinstance(mark, msgspec.Meta)]
    return str(marks[0].extra["unit"]) if marks and marks[0].extra else None


def _type(wanted: Any) -> str:
    unit = _unit(wanted)
    if unit:
        return {"size": "size", "seconds": "time", "rate": "rate or `unlimited`"}[unit]
    if get_origin(wanted) is Literal:
        return " or ".join(f'`"{choice}"`' for choice in get_args(wanted))
    if get_origin(wanted) is list:
        return "list of texts"
    if get_origin(wanted) is dict:
        return f"table, each a {_type(get_args(wanted)[1])}"
    if isinstance(wanted, UnionType) or get_origin(wanted) is not None:
        return " or ".join(_type(part) for part in get_args(wanted) if part is not type(None))
    return {str: "text", int: "number", float: "number", bool: "true or false"}[wanted]


def _default(field: msgspec.structs.FieldInfo, wanted: Any) -> str:
    if field.required:
        return "required"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if value is None:
        return ""
    if _unit(wanted) == "size":
        for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
            if value % factor == 0:
                return f'`"{value // factor}{unit}"`'
    if _unit(wanted) == "seconds":
        for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
            if value % length == 0 and (value > length or unit == "s"):
                return f'`"{value / length:g}{unit}"`'
        return f'`"{value * 1000:g}ms"`'
    return f"`{msgspec.json.encode(value).decode()}`"


def _field_notes() -> dict[str, dict[str, str]]:
    """The `#:` comments above the fields, by class and field."""
    found: dict[str, dict[str, str]] = {}
    notes: dict[str, str] = {}
    above: list[str] = []
    for line in Path(inspect.getfile(settings)).read_text(encoding="utf-8").splitlines():
        begun = re.match(r"class (\w+)", line)
        field = re.match(r"    (\w+): ", line)
        if begun:
            notes = found.setdefault(begun[1], {})
        if line.startswith("    #:"):
            above.append(line.strip()[2:].strip())
            continue
        if field:
            notes[field[1]] = " ".join(above).replace("|", "\\|")
        above = []
    return found


# --- the rest ---------------------------------------------------------------------------------


def _errors() -> Iterator[str]:
    yield _ERRORS_HEAD
    yield "| code | exit code | retryable | meaning |\n| --- | --- | --- | --- |"
    for each in _classes(errors.CastlingError):
        meaning = " ".join((inspect.getdoc(each) or "").split())
        yield f"| `{each.code}` | {each.exit_code} | {'yes' if each.retryable else 'no'} | {meaning} |"


def _classes(base: type[errors.CastlingError]) -> list[type[errors.CastlingError]]:
    """The tree in `errors`, in order of exit code."""
    found = [base]
    for inner in base.__subclasses__():
        if inner.__module__ == errors.__name__:
            found += _classes(inner)
    return sorted(found, key=lambda each: (each.exit_code, each.code))


def _metrics() -> Iterator[str]:
    yield _METRICS_HEAD
    for what, labels, figures in (
        ("streams", "`group`, `backup`", STREAM_METRICS),
        ("ends", "`group`, `backup`, `end`", END_METRICS),
    ):
        yield f"## Of {what}, labels {labels}\n"
        yield "| metric | type | what |\n| --- | --- | --- |"
        for each in figures:
            name = f"{each.name}_total" if each.counter else each.name
            yield f"| `{name}` | {'counter' if each.counter else 'gauge'} | {each.help} |"
        yield ""


def _api() -> Iterator[str]:
    yield _API_HEAD
    yield "| method | path | who | body |\n| --- | --- | --- | --- |"
    for each in ENDPOINTS:
        fields = (
            ", ".join(f"`{field.name}`" for field in msgspec.structs.fields(each.body)) if each.body else ""
        )
        yield f"| {each.method} | `{each.path}` | {each.access} | {fields} |"


def _json() -> Iterator[str]:
    yield _JSON_HEAD
    for command, fields in RESULTS.items():
        if not fields:
            continue
        yield f"\n## castling {command}\n"
        yield "| field | what |\n| --- | --- |"
        for path, what in fields:
            yield f"| `{path}` | {what} |"


def main() -> int:
    """Write all pages below docs/reference of the working directory."""
    folder = Path("docs/reference")
    if not folder.parent.is_dir():
        sys.stderr.write("error[usage]: run it where docs/ is\n")
        return 2
    folder.mkdir(exist_ok=True)
    for name, content in pages().items():
        (folder / name).write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
