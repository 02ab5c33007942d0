"""The command `castling`.

Result to stdout, story to stderr; exit codes say whose fault it was (castling.errors);
130 after Ctrl-C. Asserts guard invariants in production, so an interpreter that leaves
them out is refused.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import castling
from castling.cli.output import Result, show_error
from castling.cli.session import Session, command
from castling.errors import CastlingError, UsageError

__all__ = ["build", "main"]

INTERRUPTED = 130
#: the base of everything that can be wrong with a call (typer names it in no public place)
_WRONG_CALL: type[Exception] = typer.BadParameter.__mro__[2]
#: the modules, in the order of the help, and the words that lead to each: only what a call needs is
#: imported, because that is most of the time that a command takes
_MODULES = {
    "node": ("init", "invite", "join", "agent", "token", "node"),
    "user": ("user",),
    "access_log": ("access-log",),
    "deploy": ("deploy",),
    "group": ("check", "group"),
    "rehearsal": ("rehearsal",),
    "audit": ("audit",),
    "journal": ("journal",),
    "switch": ("switch",),
    "diagnose": ("diagnose",),
    "demo": ("demo",),
}


def build(word: str | None = None) -> typer.Typer:
    """The application: with all its commands, or with those of the module that `word` leads to."""
    app = typer.Typer(
        name="castling",
        help="Keep a hot, switch-ready copy of production, prove that it is right.",
        no_args_is_help=True,
        invoke_without_command=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_top)
    wanted = [name for name, words in _MODULES.items() if word in words] or list(_MODULES)
    if word in ("version", "--version"):
        wanted = []
    for name in wanted:
        importlib.import_module(f"castling.cli.{name}").register(app)
    command(app, "version")(_version)
    return app


def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version of this program.", is_eager=True)
    ] = False,
) -> None:
    if version:
        sys.stdout.write(f"castling {castling.__version__}\n")
        raise typer.Exit


def _version(session: Session) -> Result:
    """Show the version of this program."""
    return Result({"version": castling.__version__}, f"castling {castling.__version__}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    if not __debug__:
        sys.stderr.write("error[usage]: castling does not run under `python -O`: its asserts guard data\n")
        return UsageError.exit_code
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        done: Any = build(given[0] if given else None)(given, prog_name="castling", standalone_mode=False)
    except typer.Exit as over:
        return int(over.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except _WRONG_CALL as error:
        return _usage(error, given)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return done if isinstance(done, int) else 0


def _usage(error: BaseException, given: list[str]) -> int:
    message = getattr(error, "format_message", lambda: str(error))()
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(message + "\n")
        return UsageError.exit_code
    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context is not None else "castling --help"
    wrong: CastlingError = UsageError(message, hint=f"`{hint}` shows how it is called")
    show_error(wrong, json="--json" in given)
    return wrong.exit_code


if __name__ == "__main__":
    sys.exit(main())
