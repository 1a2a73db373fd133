"""`nanogrid init`: a new function's project, from the templates of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from nanogrid.cli.errors import CliError
from nanogrid.cli.shared import Grid, with_grid

RUNTIMES: Final = ("python3", "nodejs", "go", "cpp", "command")
TEMPLATES: Final = Path(__file__).parent / "templates"
ENDING: Final = ".tmpl"
EXECUTABLE: Final = (".sh",)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option("--runtime", default="python3", show_default=True, help=f"One of {', '.join(RUNTIMES)}.")
@click.option("--name", help="Name of the function [default: that of the folder].")
@with_grid
def init(grid: Grid, folder: Path, runtime: str, name: str | None) -> None:
    """Writes a new function's project.

    FOLDER is made if need be; no file that is there is changed.
    """
    from nanogrid.errors import InvalidRequest
    from nanogrid.model.function import check_name
    from nanogrid.model.runtimes import canonical_runtime

    chosen = canonical_runtime(runtime)
    if chosen not in RUNTIMES:
        raise CliError(f"unknown runtime {runtime!r}: use one of {', '.join(RUNTIMES)}")
    try:
        name = check_name(name or folder.resolve().name)
    except InvalidRequest as error:
        raise CliError(f"{error.detail}; pass another with --name") from error
    files = write_project(folder, chosen, name)
    grid.out.done(f"wrote {', '.join(files)} to {folder}", {"name": name, "folder": str(folder), "files": files})
    place = "" if folder == Path() else f" {folder}"
    event = f"@{folder / 'event.json'}"
    grid.out.note(f"next: nanogrid deploy{place}, then nanogrid invoke {name} -d {event}")


def write_project(folder: Path, runtime: str, name: str) -> list[str]:
    """Writes the template of a runtime; returns the names of its files.

    Raises:
        CliError: one of them is there already; then nothing is written.
    """
    templates = sorted(path for path in (TEMPLATES / runtime).iterdir() if path.name.endswith(ENDING))
    targets = {path: folder / path.name.removesuffix(ENDING) for path in templates}
    taken = [target.name for target in targets.values() if target.exists()]
    if taken:
        raise CliError(f"{folder} has {', '.join(taken)} already: choose another folder, such as `nanogrid init NAME`")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for template, target in targets.items():
            target.write_text(template.read_text().replace("{{name}}", name))
            if target.suffix in EXECUTABLE:
                target.chmod(0o755)
    except OSError as error:
        raise CliError(f"{folder}: {error.strerror}") from error
    return [target.name for target in targets.values()]
