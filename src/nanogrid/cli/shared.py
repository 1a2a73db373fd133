"""What the commands share: options, and the connection that they work with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from nanogrid.cli.client import Client
from nanogrid.cli.output import Output
from nanogrid.cli.profile import find

P = ParamSpec("P")
R = TypeVar("R")

output_option = click.option(
    "-o", "--output", "form", type=click.Choice(("text", "json")), default="text", help="How to print [default: text]."
)


class Grid:
    """The grid that a command talks to and the way it prints; the connection is made at first use."""

    def __init__(self, form: str) -> None:
        self.out = Output(form)
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The client for the profile of this machine; raises CliError when there is none."""
        if self._client is None:
            self._client = Client(find())
        return self._client


def with_grid(command: Callable[Concatenate[Grid, P], R]) -> Callable[..., R]:
    """Gives a command its `Grid` as the first argument, and the option `-o`."""

    def called(*args: Any, form: str, **options: Any) -> R:
        return command(Grid(form), *args, **options)

    called.__name__ = command.__name__
    called.__doc__ = command.__doc__
    return output_option(called)


def confirm(question: str, yes: bool) -> None:
    """Asks before something is lost for good, when there is somebody to ask.

    Raises:
        click.Abort: the answer is no.
    """
    if not yes and sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)


yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
