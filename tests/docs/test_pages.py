"""The pages: generated ones complete and fit for man(1), links and names that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.docs.blocks import PAGES, ROOT
from zfsilod.ctl.command_table import COMMANDS, NOUNS
from zfsilod.model.reasons import REASONS

if TYPE_CHECKING:
    from pathlib import Path

MANUAL_PAGES = (
    "zfsilod.8",
    "zfsiloctl.1",
    "zfsilod.toml.5",
    "zfsilo-volume@.service.5",
    "org.zfsilo1.5",
)
LINK = re.compile(r"\]\((?!\w+://)([^)#]*)(?:#([^)]+))?\)")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `make docs`, by a Python without any packages."""
    folder = tmp_path_factory.mktemp("doc")
    subprocess.run(
        ["/usr/bin/env", "-u", "PYTHONPATH", "python3", "-S", "docs/build.py", folder],
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    return folder


@pytest.mark.parametrize("page", MANUAL_PAGES)
def test_man_accepts_the_page(made: Path, page: str) -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not installed here")
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", made / page],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    assert not re.search(r"@[A-Z]+@", (made / page).read_text()), "a placeholder was not replaced"


def anchors(page: Path) -> set[str]:
    """Return the names of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_installed_pages_link_to_installed_pages(made: Path) -> None:
    for page in made.glob("*.md"):
        for target, _anchor in LINK.findall(page.read_text()):
            assert (made / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_a_sentence_exists(page: Path) -> None:
    commands = {command.words for command in COMMANDS}
    for text in re.findall(r"`zfsiloctl ([a-z][^`]*)`", page.read_text()):
        words = text.split()
        known = {" ".join(words[:1]), " ".join(words[:2])} & (commands | set(NOUNS))
        assert known, text


def test_the_packages_are_those_of_the_architecture() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.partition("## Packages")[2].partition("Beside the package")[0]
    named = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", table, re.M)
    package = ROOT / "zfsilod"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(named) == sorted(modules | packages)


def test_every_path_in_a_page_exists() -> None:
    parents = (ROOT, ROOT / "zfsilod")
    for page in PAGES:
        for path in re.findall(r"`(?!build/)([\w.-]+/[\w./@-]*)`", page.read_text()):
            if any((parent / path.partition("/")[0]).is_dir() for parent in parents):
                assert any((parent / path).exists() for parent in parents), f"{page}: {path}"


def test_every_decision_is_listed() -> None:
    listed = LINK.findall((ROOT / "docs/decisions/README.md").read_text())
    files = sorted(path.name for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert [target for target, _anchor in listed] == files
    for number, name in enumerate(files, 1):
        text = (ROOT / "docs/decisions" / name).read_text()
        assert name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number}. ")
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.M) == ["Context", "Choice", "Price"]


def test_every_command_has_its_place(made: Path) -> None:
    text = (made / "zfsiloctl.1").read_text().replace("\\-", "-")
    missing = [c.words for c in COMMANDS if f"zfsiloctl {c.words}\\fR" not in text]
    assert missing == []


def test_an_argument_says_what_it_may_be_and_how_often(made: Path) -> None:
    text = (made / "zfsiloctl.1").read_text().replace("\\-", "-")
    assert "those in this state; one of created, published, connected, staged, mounted\n" in text
    assert "\\fBzfsiloctl orphan remove\\fR \\fIORPHAN\\fR ...\n" in text


def test_every_method_has_its_place(made: Path) -> None:
    grpc = (made / "grpc.md").read_text()
    protos = "".join(path.read_text() for path in (ROOT / "proto/zfsilo/v1").glob("*.proto"))
    names = re.findall(r"^ *(?:rpc|message|enum|service) (\w+)", protos, re.M)
    assert [name for name in names if name not in grpc] == []
    assert [reason for reason in REASONS if f"| `{reason}` |" not in grpc] == []
    page = (made / "org.zfsilo1.5").read_text().replace("\\-", "-")
    xml = (ROOT / "dbus/org.zfsilo1.xml").read_text()
    members = re.findall(r"<(interface|method|signal|property) name=\"([^\"]+)\"", xml)
    assert [name for kind, name in members if f"{kind} {name}" not in page] == []


def test_every_key_has_its_place(made: Path) -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    keys = re.findall(r"^\| `([a-z]+\.\w+)` \|", page, re.M)
    text = (made / "zfsilod.toml.5").read_text()
    assert len(keys) > 10
    assert [key for key in keys if f"\\fB{key}\\fR" not in text] == []


def test_the_examples_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zfsilod import config
    from zfsilod.ctl.commands.up import wish_for

    etc = tmp_path / "etc"
    (etc / "volumes.d").mkdir(parents=True)
    shutil.copy(ROOT / "docs/examples/zfsilod.toml", etc)
    shutil.copy(ROOT / "docs/examples/data.toml", etc / "volumes.d")
    assert config.load(etc).server.root == "tank/zfsilo"
    monkeypatch.setenv("ZFSILO_SIMULATE", str(tmp_path))
    wish = wish_for("data")
    assert wish is not None
    assert wish.mount_path == "/srv/data"
