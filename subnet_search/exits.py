"""How a command ends: one clear message and the exit code that goes with it."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, ParamSpec

import typer

from search_spaces.errors import InvalidInput, SubnetSearchError, in_words

P = ParamSpec("P")
LONGEST_LINE = 600  # characters of a message; a value of a recipe may have any length
debugging = False  # set once by `cli.run_command`; the commands themselves know nothing of it


class Terminated(KeyboardInterrupt):
    """SIGTERM: stops as cleanly as Ctrl-C does."""


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """What SIGTERM does while a command runs."""
    raise Terminated


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turns every exception of a command into one clear message and the exit code that goes with it."""

    @functools.wraps(command)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except Terminated as stop:
            _leave(stop, "stopped by SIGTERM", 143)
        except KeyboardInterrupt as stop:
            _leave(stop, "stopped by Ctrl-C", 130)
        except InvalidInput as error:
            _leave(error, f"refused: {error}", 2)
        except SubnetSearchError as error:
            _leave(error, f"failed: {error}", 1)
        except SystemExit as stop:
            _leave(stop, f"failed: code that the recipe names ended the program, sys.exit({stop.code!r})", 1)
        except Exception as error:
            hint = "" if debugging else " (--debug shows where)"
            _leave(error, f"failed: {in_words(error)}{hint}", 1)

    return call


def _leave(error: BaseException, message: str, code: int) -> NoReturn:
    if debugging:
        traceback.print_exception(error)
    for part in (message, *getattr(error, "__notes__", ())):
        for line in part.split("\n"):
            typer.echo(_shortened(line), err=True)
    raise typer.Exit(code)


def _shortened(line: str) -> str:
    """A line that people can read: of a very long one its beginning, which has the rule, and its end."""
    most = LONGEST_LINE - 30
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[: most * 3 // 4]} [{len(line) - most:,} characters] {line[-(most // 4) :]}"
