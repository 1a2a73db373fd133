"""The command `nanogrid`: a group that imports a command only when it is called, and the exit statuses."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import Any, Final, NamedTuple

import click

from nanogrid import __version__
from nanogrid.cli.errors import INTERRUPTED, PLATFORM_FAILED, USAGE, CliError


class Entry(NamedTuple):
    """Where a command is, and its line in the help (the first line of its docstring; a test compares)."""

    module: str
    name: str
    help: str


COMMANDS: Final[dict[str, dict[str, Entry]]] = {
    "Start": {
        "up": Entry("grid", "up", "Starts a grid on this machine."),
        "demo": Entry("demo", "demo", "Shows everything once: a grid, four languages, sync and async."),
        "doctor": Entry("doctor", "doctor", "Checks what this machine has, and says how to get the rest."),
        "init": Entry("project", "init", "Writes a new function's project."),
    },
    "Functions": {
        "deploy": Entry("deploy", "deploy", "Builds and publishes a function."),
        "invoke": Entry("invoke", "invoke", "Invokes a function and prints its result."),
        "functions": Entry("functions", "functions", "Lists, describes and deletes functions."),
        "versions": Entry("functions", "versions", "Lists the versions of a function."),
        "rollback": Entry("functions", "rollback", "Makes an older version $LATEST again."),
        "alias": Entry("functions", "alias", "Names versions, and shares calls between two."),
    },
    "Invocations": {
        "invocations": Entry("invocations", "invocations", "Lists, shows, cancels and replays invocations."),
        "logs": Entry("logs", "logs", "Shows what a function printed."),
        "dlq": Entry("invocations", "dlq", "Lists, redrives and purges dead letters."),
    },
    "Access": {
        "secret": Entry("access", "secret", "Stores values that functions get as environment variables."),
        "keys": Entry("access", "keys", "Makes, lists and revokes API keys."),
    },
    "Grid": {
        "workers": Entry("grid", "workers", "Lists and drains workers."),
        "scaling": Entry("grid", "scaling", "Shows what scaling looks at: the queue and the workers."),
    },
}
FLAT: Final = {name: entry for section in COMMANDS.values() for name, entry in section.items()}


class LazyGroup(click.Group):
    """Looks commands up in the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(FLAT)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the module of the command."""
        entry = FLAT.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(f"nanogrid.cli.{entry.module}"), entry.name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a name that is almost right."""
        if args and args[0] not in FLAT and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], FLAT, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else " See nanogrid --help."
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section for each group of commands, without importing any."""
        width = max(map(len, FLAT))
        for title, section in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), entry.help) for name, entry in section.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Every command has --help. The grid is the one that `nanogrid up` started last here, or that of "
    "NANOGRID_URL and NANOGRID_API_KEY.",
)
@click.version_option(__version__, prog_name="nanogrid")
def cli() -> None:
    """NanoGrid: functions in Python, Node.js, Go, C++ or anything, on your own machines."""


def main(args: list[str] | None = None) -> None:
    """The entry point; leaves by `sys.exit`."""
    for stream in (sys.stdout, sys.stderr):
        # A lone surrogate, or a terminal without UTF-8, must not end a command.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(call(args))


def call(args: list[str] | None = None) -> int:
    """Runs a command line; returns its exit status, with errors already printed."""
    try:
        status: Any = cli.main(args, prog_name="nanogrid", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; the interpreter must not complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except CliError as error:
        return _show(error, args)
    except Exception as error:
        return _show_other(error)


def _show(error: CliError, args: list[str] | None) -> int:
    from nanogrid.cli.errors import Problem
    from nanogrid.cli.output import Output, escape

    given = sys.argv[1:] if args is None else args
    if error.body is not None and _wants_json(given):
        Output("json").json(error.body)
    elif isinstance(error, Problem) and error.failure is not None:
        from nanogrid.cli.invoke import show_failure

        sys.stderr.write(show_failure(error) + "\n")
    else:
        request_id = (error.body or {}).get("request_id")
        quote = f" (request {request_id})" if error.status == PLATFORM_FAILED and request_id else ""
        sys.stderr.write(f"nanogrid: {escape(error.message)}{quote}\n")
    return error.status


def _show_other(error: Exception) -> int:
    from nanogrid.errors import ConfigError, NanoGridError, RequestError

    if not isinstance(error, NanoGridError):
        import traceback

        traceback.print_exception(error)
        sys.stderr.write("nanogrid: a defect of the command line, not of your function\n")
        return PLATFORM_FAILED
    sys.stderr.write(f"nanogrid: {error.detail}\n")
    return USAGE if isinstance(error, (ConfigError, RequestError)) else PLATFORM_FAILED


def _wants_json(args: list[str]) -> bool:
    joined = " ".join(args)
    return "-o json" in joined or "-ojson" in args or "--output json" in joined or "--output=json" in args
