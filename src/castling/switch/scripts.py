"""Programs of the user's that a procedure calls: their environment, their time limit, their captured words.

A script is a file that is executed, without a shell and without arguments. It learns what it is called for
from its environment, which holds nothing of the agent's own but PATH, HOME and LANG: there may be secrets in
it. It may be called again for the same step (after a failure, or when the agent died meanwhile), so it must
bear that; a call that is still running from before is ended first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from pathlib import Path

import msgspec

from castling.errors import StepFailed

__all__ = ["NOT_NEEDED", "OUTPUT_MAX", "Output", "environment", "problem", "run_script"]

#: what stands in castling.toml for a script that nobody needs
NOT_NEEDED = "not needed"
#: the end of what a script said is kept, bytes
OUTPUT_MAX = 64 << 10
#: what a script's children may still say after its own end, seconds
_LINGER_S = 0.2
_KEPT = ("PATH", "HOME", "LANG")
_VARIABLE = re.compile(r"CASTLING_[A-Z_]{1,40}")


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """`exit_code` None: it was ended at its time limit."""

    script: str
    path: str
    exit_code: int | None
    seconds: float
    output: str


def problem(path: str) -> str | None:
    """Why the script at `path` could not be called on this node; None when it could."""
    file = Path(path)
    if not file.is_absolute():
        return f"{path} is not an absolute path"
    if not file.is_file():
        return f"{path} is not a file"
    if not os.access(file, os.X_OK):
        return f"{path} can't be executed"
    if file.stat().st_mode & 0o002:
        return f"{path} can be changed by everybody"
    return None


def environment(given: dict[str, str]) -> dict[str, str]:
    """What a script gets: `given`, of which only CASTLING_… counts, and the agent's PATH, HOME, LANG."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    mine = {name: value for name, value in given.items() if _VARIABLE.fullmatch(name) and "\0" not in value}
    return {"PATH": os.defpath, **kept, **mine}


async def run_script(name: str, path: str, given: dict[str, str], *, limit_s: float, folder: Path) -> Output:
    """Call it and wait. StepFailed, with its words, when it ends with another code than 0 or not in time.

    `folder`: where this node notes which scripts run.
    """
    wrong = problem(path)
    if wrong is not None:
        raise StepFailed(f"script {name}: {wrong}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    note = folder / f"{given.get('CASTLING_APPLICATION', '')}.{name.replace(':', '.')}.pid"
    _end_earlier(note)
    began = time.monotonic()
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment(given),
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise StepFailed(f"script {name}: {path} can't be executed: {error.strerror or error}") from error
    note.write_text(f"{process.pid} {_started(process.pid)}")
    tail = bytearray()
    reading = asyncio.create_task(_read(process, tail))
    exit_code: int | None = None
    try:
        async with asyncio.timeout(limit_s):
            exit_code = await process.wait()
    except TimeoutError:
        pass
    finally:
        if exit_code is None:
            _kill_group(process.pid)
        await asyncio.wait((reading,), timeout=_LINGER_S)
        reading.cancel()
        note.unlink(missing_ok=True)
    output = Output(
        script=name,
        path=path,
        exit_code=exit_code,
        seconds=round(time.monotonic() - began, 3),
        output=bytes(tail).decode(errors="replace"),
    )
    if exit_code != 0:
        how = f"did not end within {limit_s:g} s" if exit_code is None else f"ended with code {exit_code}"
        last = output.output.strip().rpartition("\n")[2][:200]
        raise StepFailed(
            f"script {name} ({path}) {how}" + (f": {last}" if last else ""),
            hint="`castling switch show RUN` has all that it said; mend it and resume",
            output=msgspec.to_builtins(output),
        )
    return output


async def _read(process: asyncio.subprocess.Process, tail: bytearray) -> None:
    assert process.stdout is not None
    while part := await process.stdout.read(1 << 16):
        tail += part
        del tail[:-OUTPUT_MAX]


def _end_earlier(note: Path) -> None:
    """The call that an agent which has died left running."""
    with contextlib.suppress(OSError, ValueError):
        pid, started = map(int, note.read_text().split())
        if _started(pid) == started:
            _kill_group(pid)


def _started(pid: int) -> int:
    """When the process was started, in the kernel's ticks; with its number it names one process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
