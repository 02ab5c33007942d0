"""Text of a castling.toml to settings, telling every problem with its line and key.

All problems are gathered before anything is refused: whoever edits the file should
not meet them one at a time. `parse` is pure; `load` reads the file.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path as FilePath
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from castling.config import rules, units
from castling.config.places import Path, nearest, places
from castling.config.settings import Config
from castling.errors import ConfigError, NotFound

__all__ = ["load", "parse"]

#: no castling.toml is longer than this, bytes
TEXT_MAX = 1 << 20
#: problems told at once, at most
PROBLEMS_MAX = 20
_UNITS = {"size": units.size, "seconds": units.seconds, "rate": units.unlimited_rate}
_SECRETS = ("password", "passwd", "pwd", "pgpassword")
_MISSING = object()


def load(path: str | FilePath) -> Config:
    """The settings in the file at `path`; NotFound without one, ConfigError naming every problem."""
    file = FilePath(path)
    try:
        if file.stat().st_size > TEXT_MAX:
            raise ConfigError(f"{file} is larger than {TEXT_MAX} bytes")
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} can't be read: {error}") from error
    return parse(text, source=str(file))


def parse(text: str, source: str = "castling.toml") -> Config:
    """The settings that `text` says; ConfigError names every problem as `source:line: key: what`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"^(.*) \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = found[2] if found and found[2] else text.count("\n") + 1
        where, what = f"{source}:{line}", found[1] if found else str(error)
        raise ConfigError(f"{where}: {what}", problems=[f"{where}: {what}"]) from error
    reader = _Reader()
    config = reader.struct(Config, raw, ())
    problems = reader.problems
    if not problems:
        assert isinstance(config, Config)
        problems = rules.problems(config)
        if not problems:
            return config
    where_is = places(text)
    told = []
    for path, what in problems[:PROBLEMS_MAX]:
        line = nearest(where_is, path)
        told.append(f"{source}{f':{line}' if line else ''}: {'.'.join(path) or 'the file'}: {what}")
    if len(problems) > PROBLEMS_MAX:
        told.append(f"{source}: and {len(problems) - PROBLEMS_MAX} more")
    raise ConfigError("\n".join(told), problems=told)


class _Reader:
    """Walks raw TOML beside the settings' types, keeping the path; gathers problems."""

    def __init__(self) -> None:
        self.problems: list[tuple[Path, str]] = []

    def refuse(self, path: Path, what: str) -> object:
        self.problems.append((path, what))
        return _MISSING

    def struct(self, wanted: type[msgspec.Struct], raw: Any, path: Path) -> object:
        if not isinstance(raw, dict):
            return self.refuse(path, "must be a table")
        hints = get_type_hints(wanted, include_extras=True)
        for key in raw:
            if key not in hints:
                self.refuse((*path, key), _unknown(key, list(hints)))
        values: dict[str, object] = {}
        for field in msgspec.structs.fields(wanted):
            if field.name in raw:
                values[field.name] = self.value(hints[field.name], raw[field.name], (*path, field.name))
            elif field.required:
                values[field.name] = self.refuse((*path, field.name), "is missing")
        if any(value is _MISSING for value in values.values()):
            return _MISSING
        return wanted(**values)

    def value(self, wanted: Any, raw: Any, path: Path) -> object:
        if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
            return self.struct(wanted, raw, path)
        if get_origin(wanted) is dict:
            return self.table(get_args(wanted)[1], raw, path)
        unit = _unit(wanted)
        if unit is not None:
            try:
                return _UNITS[unit](raw)
            except ValueError as error:
                return self.refuse(path, str(error))
        try:
            return msgspec.convert(raw, wanted)
        except msgspec.ValidationError as error:
            return self.refuse(path, _plain(wanted, str(error)))

    def table(self, wanted: Any, raw: Any, path: Path) -> object:
        """A table whose keys are names that the user chose."""
        if not isinstance(raw, dict):
            return self.refuse(path, "must be a table")
        values = {key: self.value(wanted, value, (*path, key)) for key, value in raw.items()}
        return _MISSING if any(value is _MISSING for value in values.values()) else values


def _unit(wanted: Any) -> str | None:
    for mark in getattr(wanted, "__metadata__", ()):
        if isinstance(mark, msgspec.Meta) and mark.extra is not None:
            return str(mark.extra["unit"])
    return None


def _unknown(key: str, known: list[str]) -> str:
    if key.lower() in _SECRETS and "password_file" in known:
        return "a password never stands in this file; use password_file, password_env or passfile"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"unknown key; did you mean `{near[0]}`?" if near else f"unknown key; known: {', '.join(known)}"


def _plain(wanted: Any, message: str) -> str:
    """msgspec's message without its own path, and with the choices where there are any."""
    message = re.sub(r" - at `\$.*`$", "", message)
    choices = [part for part in get_args(wanted) if isinstance(part, str)]
    for part in get_args(wanted):
        choices += [inner for inner in get_args(part) if isinstance(inner, str)]
    if choices and message.startswith("Invalid enum value"):
        return f"must be one of {', '.join(choices)}"
    return message[:1].lower() + message[1:]
