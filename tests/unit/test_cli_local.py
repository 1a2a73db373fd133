"""The parts of the command line that need no server: the table of commands, profiles, projects, printing."""

from __future__ import annotations

import importlib
import json
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from nanogrid.cli import profile
from nanogrid.cli.errors import CliError
from nanogrid.cli.invocations import LIST
from nanogrid.cli.main import FLAT, call
from nanogrid.cli.output import Output, escape, escape_cell
from nanogrid.cli.project import RUNTIMES, write_project
from nanogrid.cli.source import check, parse_project, read_source
from nanogrid.cli.times import Span, age, size, span_ms
from nanogrid.model.runtimes import RUNTIMES as KNOWN

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", FLAT)
def test_the_table_says_what_the_command_says(name: str) -> None:
    entry = FLAT[name]
    command = getattr(importlib.import_module(f"nanogrid.cli.{entry.module}"), entry.name)
    assert (command.help or "").strip().splitlines()[0] == entry.help


def test_every_command_and_option_is_explained() -> None:
    def walk(command: click.Command) -> None:
        assert command.help, command.name
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help, (command.name, parameter.name)
        if isinstance(command, click.Group):
            for inner in command.commands.values():
                walk(inner)

    for entry in FLAT.values():
        walk(getattr(importlib.import_module(f"nanogrid.cli.{entry.module}"), entry.name))


def test_help_and_invoke_import_nothing_of_the_server() -> None:
    code = (
        "import sys, nanogrid.cli.main, nanogrid.cli.invoke\n"
        "heavy = {'msgspec', 'aiohttp', 'starlette', 'uvicorn', 'rich', 'nanogrid.settings'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_almost_right_is_suggested(capsys: Any) -> None:
    assert call(["depoly"]) == 2
    assert "Did you mean 'deploy'?" in capsys.readouterr().err


def test_a_defect_is_not_blamed_on_the_function(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def broken() -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("nanogrid.cli.shared.find", broken)
    assert call(["functions", "ls"]) == 3
    assert "boom" in capsys.readouterr().err


def test_a_profile_is_private_and_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("NANOGRID_URL", raising=False)
    monkeypatch.delenv("NANOGRID_API_KEY", raising=False)
    file = profile.write("http://127.0.0.1:8080", "ng_a", "/data")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert profile.find() == ("http://127.0.0.1:8080", "ng_a", "/data")
    assert profile.write("http://127.0.0.1:9090", "ng_b") == file
    assert [path.name for path in file.parent.iterdir()] == ["profile.json"]
    monkeypatch.setenv("NANOGRID_API_KEY", "ng_c")
    assert profile.find()[:2] == ("http://127.0.0.1:9090", "ng_c")


def test_the_key_of_a_profile_goes_to_no_other_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("NANOGRID_API_KEY", raising=False)
    profile.write("http://127.0.0.1:8080", "ng_a")
    monkeypatch.setenv("NANOGRID_URL", "http://elsewhere:80")
    with pytest.raises(CliError, match="NANOGRID_API_KEY"):
        profile.find()
    profile.path().write_text("{")
    with pytest.raises(CliError, match="damaged"):
        profile.stored()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_init_writes_a_project_that_deploys(runtime: str, tmp_path: Path) -> None:
    folder = tmp_path / "hello"
    files = write_project(folder, runtime, "hello")
    assert set(RUNTIMES) == set(KNOWN) and "nanogrid.toml" in files
    assert not any("{{name}}" in (folder / name).read_text() for name in files)
    with read_source(folder, {}) as source:
        check(source)
        assert source.config["runtime"] == runtime and source.archive.stat().st_size > 0
    json.loads((folder / "event.json").read_text())
    with pytest.raises(CliError, match="already"):
        write_project(folder, runtime, "hello")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            'name = "x"\nruntime = "python3"\nmemory_mbs = 1\n',
            "nanogrid.toml:3: `memory_mbs` is not known: did you mean",
        ),
        ('name = "x"\nruntime = "python3"\nmemory_mb = "a"\n', "nanogrid.toml:3: `memory_mb`: Expected `int`"),
        ('runtime = "pithon"\n', "nanogrid.toml:1: unknown runtime 'pithon'"),
        ('runtime = "python3"\n[env]\nLD_PRELOAD = "x"\n', "nanogrid.toml:2: env: LD_PRELOAD is reserved"),
        ('runtime = "python3"\nnetwork = "all"\n', "nanogrid.toml:2: network: 'all'"),
        ('runtime = "python3\n', "nanogrid.toml:1:"),
    ],
)
def test_a_wrong_project_file_is_told_by_line_and_field(toml: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "nanogrid.toml").write_text(toml)
    with pytest.raises(CliError) as raised, read_source(tmp_path, {"name": "x"}) as source:
        check(source)
    assert message in raised.value.message


@pytest.mark.parametrize(
    ("file", "runtime", "handler"),
    [
        ("a.py", "python3", "a.handler"),
        ("a.mjs", "nodejs", "a.handler"),
        ("a.go", "go", None),
        ("a.cpp", "cpp", None),
        ("a.sh", "command", "a.sh"),
    ],
)
def test_a_single_file_tells_its_runtime(file: str, runtime: str, handler: str | None, tmp_path: Path) -> None:
    (tmp_path / file).write_text("x")
    with read_source(tmp_path / file, {}) as source:
        assert source.config == {"name": "a", "runtime": runtime, **({"handler": handler} if handler else {})}


def test_what_cannot_be_deployed_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for path, words in (
        (tmp_path / "nope", "does not exist"),
        (tmp_path / "a.txt", ".py"),
        (tmp_path, "nanogrid init"),
    ):
        with pytest.raises(CliError, match=words), read_source(path, {}):
            pass


def test_env_of_the_command_line_is_added_to_that_of_the_project(tmp_path: Path) -> None:
    (tmp_path / "nanogrid.toml").write_text('runtime = "python3"\n[env]\nA = "1"\nB = "1"\n')
    with read_source(tmp_path, {"env": {"B": "2"}}) as source:
        assert source.config["env"] == {"A": "1", "B": "2"} and source.config["name"] == tmp_path.name


def test_every_example_is_a_valid_project() -> None:
    for file in sorted(ROOT.glob("examples/*/nanogrid.toml")):
        config, _ = parse_project(file.read_text(), str(file))
        assert config == tomllib.loads(file.read_text())
        with read_source(file.parent, {}) as source:
            check(source)


def test_control_characters_are_shown_and_not_sent() -> None:
    assert escape("a\x1b[2Jb\r\nc\x85\u202e") == "a\\x1b[2Jb\nc\\x85\\u202e"
    assert escape_cell("one\ntwo\t") == "one\\x0atwo\\x09" and escape_cell(None) == "-"


def test_a_table_is_plain_text_where_nobody_looks(capsys: Any) -> None:
    record = {"id": "i", "function": "f", "version": 1, "status": "FAILED", "trigger": "sync", "attempt": 2}
    record["failure"] = {"error_class": "TIMEOUT", "type": "T", "message": "\x1b[31m"}
    Output().table([record], LIST, "none")
    head, line = capsys.readouterr().out.splitlines()
    assert head.startswith("ID  FUNCTION  STATUS") and "TIMEOUT: T: \\x1b[31m" in line
    Output().table([], LIST, "none")
    assert capsys.readouterr() == ("", "none\n")


def test_json_output_is_one_line_without_control_characters(capsys: Any) -> None:
    Output("json").json({"a": "\x9b€\u202e"})
    assert capsys.readouterr().out == '{"a": "\\u009b€\\u202e"}\n'


def test_times_and_sizes() -> None:
    span = Span()
    assert [span.convert(text, None, None) for text in ("5", "1.5m", "2h", "7d")] == [5.0, 90.0, 7200.0, 604800.0]
    with pytest.raises(click.BadParameter, match="15m"):
        span.convert("soon", None, None)
    assert (span_ms(4.25), span_ms(812), span_ms(61_000)) == ("4.2 ms", "812 ms", "1.0 min")
    assert (size(815), size(2048), size(5 << 30)) == ("815 B", "2.0 KiB", "5.0 GiB") and age(None) is None
