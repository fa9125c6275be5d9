"""The argument parser, built from the table of commands, for the typed commands only."""

from __future__ import annotations

import argparse
import os
import re

from zfsilod.ctl.command_table import (
    COMMANDS,
    COMMON,
    EPILOGS,
    NOUNS,
    SYNONYMS,
    Argument,
    Command,
)
from zfsilod.ctl.failures import EXIT_CODES_HELP
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, NoReturn

    Subparsers = argparse._SubParsersAction["Parser"]

DEFAULTS = {"remote": "", "socket": "", "timeout": None, "json": False, "quiet": False}
HELP = {"-h", "--help"}
WIDTH = 80  # without a terminal
CHANGE_DEFAULTS = {"dry_run": False, "no_wait": False}


class Formatter(argparse.RawDescriptionHelpFormatter):
    """The formatter of help texts, which argparse makes once for each argument."""

    def __init__(self, prog: str) -> None:
        # Otherwise argparse imports shutil, with all compressors, and asks for the width each time.
        super().__init__(prog, width=_columns() - 2)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InvalidArgument instead of exiting."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=Formatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise the message as InvalidArgument."""
        unknown = re.match(r"argument COMMAND: invalid choice: '([^']+)'", message)
        if unknown and (meant := suggestion(unknown[1], self.prog.partition(" ")[2])):
            raise InvalidArgument(
                f"there is no command {unknown[1]!r} here", reason="USAGE", usage=meant
            )
        raise InvalidArgument(message, reason="USAGE", usage=f"{self.prog} --help")


def suggestion(word: str, noun: str) -> str:
    """Return the command that was meant by an unknown word behind a noun (""), or ""."""
    from difflib import get_close_matches

    meanings = (word, *SYNONYMS.get(word, ()))
    verbs = [command.verb for command in COMMANDS if command.noun == (noun or "volume")]
    known = verbs if noun else list(NOUNS)
    if verb := next((meaning for meaning in meanings if meaning in verbs), ""):
        return f"zfsiloctl {noun or 'volume'} {verb}"
    close = get_close_matches(word, known, 1)
    return " ".join(["zfsiloctl", *([noun] if noun else []), *close]) if close else ""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments; `function` is the command's. Raises InvalidArgument."""
    if argv and argv[0] == "help":
        argv = [*argv[1:], "--help"]
    try:
        for word in argv:
            word.encode()  # no message can carry bytes that are not UTF-8
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"argument {error.object!r} is not UTF-8", reason="USAGE") from None
    try:
        args = _parsed(make(argv), argv)
    except InvalidArgument:
        args = _parsed(make(argv, whole=True), argv)  # its message names all choices
    for name, value in (DEFAULTS | CHANGE_DEFAULTS).items():
        if not hasattr(args, name):
            setattr(args, name, value)
    return args


def _parsed(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse, and report unknown arguments with the usage of the command."""
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        args.help_of.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def make(typed: Sequence[str], *, whole: bool = False) -> Parser:
    """Return a parser of the typed commands, or of all commands.

    argparse looks up translations and the terminal's width for every command and argument, which
    takes 20 ms for all of them.
    """
    whole = whole or not HELP.isdisjoint(typed)
    parser = Parser(
        prog="zfsiloctl",
        description="Manage ZFS volumes, their exports and attachments.",
        epilog=EXIT_CODES_HELP,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    _add(parser, COMMON)
    parser.set_defaults(function="")
    nouns = parser.add_subparsers(title="commands", metavar="COMMAND")
    for noun in _typed(NOUNS, typed, whole=whole):
        commands = {command.verb: command for command in COMMANDS if command.noun == noun}
        if "" in commands:
            _add_command(nouns, noun, commands[""])
            continue
        text = NOUNS[noun]
        below = nouns.add_parser(
            noun,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=EPILOGS.get(noun),
            allow_abbrev=False,
        )
        below.set_defaults(help_of=below)
        if noun in typed:
            verbs = below.add_subparsers(title="commands", metavar="COMMAND")
            for verb in _typed(commands, typed, whole=whole):
                _add_command(verbs, verb, commands[verb])
    parser.set_defaults(help_of=parser)
    return parser


def _columns() -> int:
    """Return the width of the terminal, as shutil.get_terminal_size does."""
    if (text := os.environ.get("COLUMNS", "")).isdecimal() and int(text):
        return int(text)
    try:
        return os.get_terminal_size(1).columns or WIDTH
    except OSError:
        return WIDTH


def _typed(words: Iterable[str], typed: Sequence[str], *, whole: bool) -> list[str]:
    """Return the words that were typed; all when none was."""
    matches = [] if whole else [word for word in words if word in typed]
    return matches or list(words)


def _add_command(into: Subparsers, name: str, command: Command) -> None:
    text = command.text
    parser = into.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    parser.set_defaults(function=command.function, help_of=parser)
    _add(parser, command.arguments)
    _add(parser.add_argument_group("common options"), COMMON)


def _add(parser: argparse._ActionsContainer, arguments: Sequence[Argument]) -> None:
    for argument in arguments:
        options = dict(argument.options)
        if argument in COMMON:  # they are accepted before the command and after it
            options["default"] = argparse.SUPPRESS
        text = argument.text.replace("%", "%%")
        parser.add_argument(*argument.names, help=text, **options)  # type: ignore[arg-type]
