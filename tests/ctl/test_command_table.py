"""The table of commands: complete, with help, and without early imports."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

from tests.ctl.shell import PROJECT
from zfsilod.ctl import main
from zfsilod.ctl.command_table import COMMANDS, COMMON, EPILOGS, NOUNS, SYNONYMS, Command
from zfsilod.ctl.commands.completion import LISTS, REMOTE
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
    for argument in (*command.arguments, *COMMON):
        assert squeezed(argument.text) in squeezed(said)  # argparse breaks lines, at hyphens too
        assert argument.names[-1] in said or str(argument.options["metavar"]) in said


@pytest.mark.parametrize("command", COMMANDS, ids=words_of)
def test_the_function_exists(command: Command) -> None:
    module, _, name = command.function.partition(":")
    assert callable(getattr(import_module(f"zfsilod.ctl.commands.{module}"), name))


def test_the_help_lists_every_noun(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert {command.noun for command in COMMANDS} == set(NOUNS)
    for noun, text in NOUNS.items():
        assert re.search(rf"^    {noun}\b", said, re.MULTILINE)
        assert squeezed(text) in squeezed(said)


def test_completions_are_words_or_lists_that_exist() -> None:
    for command in COMMANDS:
        for argument in command.arguments:
            if isinstance(argument.offer, str):
                assert argument.offer in (*LISTS, REMOTE, "files")
            elif "choices" in argument.options:
                assert argument.options["choices"] == argument.offer


FILTERED = {
    command.words: argument.text
    for command in COMMANDS
    for argument in command.arguments
    if argument.names == ("--filter",)
}


@pytest.mark.parametrize(("words", "text"), FILTERED.items())
def test_the_example_of_a_filter_is_valid(ctl: Shell, words: str, text: str) -> None:
    example = text.partition("'")[2].removesuffix("'")
    ctl.ok(words, "--filter", example)


def test_common_options_are_accepted_before_and_after_the_command() -> None:
    before = parse(["--json", "-H", "give", "--timeout", "3", "volume", "list"])
    after = parse(["volume", "list", "--json", "-H", "give", "--timeout", "3"])
    assert vars(before) | {"help_of": None} == vars(after) | {"help_of": None}
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
def test_a_usage_error_names_the_help_of_its_command(
    line: str, usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    assert capsys.readouterr().err.endswith(f"\n  try: {usage}\n")


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("ls", "zfsiloctl volume list"),
        ("attach data /srv/data", "zfsiloctl volume attach"),
        ("volumes list", "zfsiloctl volume"),
        ("volume ls", "zfsiloctl volume list"),
        ("volume rm data", "zfsiloctl volume delete"),
        ("volume get data", "zfsiloctl volume show"),
        ("volume umount data", "zfsiloctl volume unmount"),
        ("volume shows data", "zfsiloctl volume show"),
        ("token rm data", "zfsiloctl token revoke"),
        ("orphan rm x", "zfsiloctl orphan remove"),
        ("snapshot new data", "zfsiloctl snapshot create"),
    ],
)
def test_a_word_of_another_tool_names_the_command(
    line: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("zfsiloctl: there is no command '")
    assert said.endswith(f"\n  try: {meant}\n")


def test_suggestions_are_commands() -> None:
    verbs = {command.verb for command in COMMANDS}
    assert {meaning for meanings in SYNONYMS.values() for meaning in meanings} <= verbs
    assert not {word for word in SYNONYMS if word in NOUNS}


@pytest.mark.parametrize("line", ["", "volume", "volume attach"])
def test_help_is_a_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for words in (["help", *line.split()], [*line.split(), "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_everyday_commands_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["volume", "--help"])
    said = capsys.readouterr().out
    assert said.index("\n    attach") < said.index("\n    publish")
    assert squeezed(EPILOGS["volume"]) in squeezed(said)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"zfsiloctl [0-9.]+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "line", ["--help", "volume create --help", "completion bash", "--version", "volume list -x"]
)
def test_commands_without_a_daemon_load_nothing_heavy(line: str) -> None:
    code = (
        "import sys\n"
        "from zfsilod.ctl import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_closed_pipe_is_not_an_error(ctl: Shell) -> None:
    process = ctl.process("completion bash")
    assert process.stdout is not None
    process.stdout.close()
    _out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (141, "")
