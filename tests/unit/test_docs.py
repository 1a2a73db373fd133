"""The documentation says what the code does: commands, settings, error codes, words."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanogrid import errors
from nanogrid.cli.main import FLAT
from nanogrid.model.invocation import ErrorClass, Status

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


@pytest.mark.parametrize("script", ["generate_docs.py", "write_settings_doc.py"])
def test_generated_pages_are_current(script: str) -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / script, "--check"], check=True)


def test_every_error_code_is_explained() -> None:
    text = (DOCS / "errors.md").read_text()
    codes = {
        kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.NanoGridError)
    }
    missing = [code for code in (*sorted(codes), *ErrorClass, "METHOD_NOT_ALLOWED") if f"`{code}`" not in text]
    assert not missing


def test_every_state_and_every_word_is_in_the_glossary() -> None:
    text = (DOCS / "glossary.md").read_text()
    words = [
        "function",
        "version",
        "alias",
        "qualifier",
        "runtime",
        "handler",
        "event",
        "context",
        "invocation",
        "attempt",
        "outcome",
        "sandbox",
    ]
    words += ["worker", "controller", "trigger", "lease", "dead-letter queue", "cold start", "warm start"]
    assert not [word for word in words if f"**{word}**" not in text]
    assert not [status for status in Status if status not in text]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", CODE.sub("", page.read_text())):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_commands_that_the_documentation_shows_exist(page: Path) -> None:
    shown = re.findall(r"^\s*(?:\$ )?nanogrid ([a-z]+)", page.read_text(), re.MULTILINE)
    assert set(shown) <= set(FLAT)
