"""The table of commands: it is complete, has help, and costs no imports before it must."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

from tests.ctl.shell import PROJECT
from zfsilod.ctl import main
from zfsilod.ctl.command_table import COMMANDS, COMMON, NOUNS, Command
from zfsilod.ctl.commands.completion import LISTS
from zfsilod.ctl.parser import parse

if TYPE_CHECKING:
    from tests.ctl.shell import Shell

HEAVY = ("grpc", "asyncio", "google.protobuf", "rich", "lmdb", "cryptography", "msgspec")


def words_of(command: Command) -> str:
    return command.words


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("command", COMMANDS, ids=words_of)
def test_help(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.words.split(), "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: zfsiloctl {command.words} ")
    for each in (*command.arguments, *COMMON):
        assert squeezed(each.text) in squeezed(said)  # argparse breaks lines, at hyphens too
        assert each.names[-1] in said or str(each.options["metavar"]) in said


@pytest.mark.parametrize("command", COMMANDS, ids=words_of)
def test_the_function_is_there(command: Command) -> None:
    module, _, name = command.function.partition(":")
    assert callable(getattr(import_module(f"zfsilod.ctl.commands.{module}"), name))


def test_the_help_lists_every_noun(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert {each.noun for each in COMMANDS} == set(NOUNS)
    for noun, text in NOUNS.items():
        assert re.search(rf"^    {noun}\b", said, re.MULTILINE)
        assert squeezed(text) in squeezed(said)


def test_offers_are_words_or_lists_that_there_are() -> None:
    for command in COMMANDS:
        for each in command.arguments:
            if isinstance(each.offer, str):
                assert each.offer in (*LISTS, "files")
            elif "choices" in each.options:
                assert each.options["choices"] == each.offer


def test_common_options_stand_before_and_behind() -> None:
    before = parse(["--json", "-H", "give", "--timeout", "3", "volume", "list"])
    behind = parse(["volume", "list", "--json", "-H", "give", "--timeout", "3"])
    assert vars(before) | {"help_of": None} == vars(behind) | {"help_of": None}
    assert (before.json, before.remote, before.timeout) == (True, "give", 3.0)


@pytest.mark.parametrize(
    ("line", "usage"),
    [
        ("--bogus", "zfsiloctl --help"),
        ("bogus", "zfsiloctl --help"),
        ("volume --bogus", "zfsiloctl volume --help"),
        ("volume bogus", "zfsiloctl volume --help"),
        ("volume list --bogus", "zfsiloctl volume list --help"),
        ("--bogus volume list", "zfsiloctl volume list --help"),
        ("volume show data c", "zfsiloctl volume show --help"),
        ("volume show", "zfsiloctl volume show --help"),
    ],
)
def test_a_wrong_line_is_sent_to_the_help_of_its_command(
    line: str, usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    assert capsys.readouterr().err.endswith(f"\n  try: {usage}\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"zfsiloctl [0-9.]+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "line", ["--help", "volume create --help", "completion bash", "--version", "volume list -x"]
)
def test_what_needs_no_daemon_loads_nothing_heavy(line: str) -> None:
    code = (
        "import sys\n"
        "from zfsilod.ctl import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"print([each for each in {HEAVY} if each in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_reader_that_goes_away_is_no_failure(ctl: Shell) -> None:
    process = ctl.process("completion bash")
    assert process.stdout is not None
    process.stdout.close()
    _out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (141, "")
