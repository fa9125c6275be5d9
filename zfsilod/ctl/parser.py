"""The parser, made from the table of commands; only the nouns that were typed are filled in."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from zfsilod.ctl.command_table import COMMANDS, COMMON, NOUNS, Argument, Command
from zfsilod.ctl.failures import EXIT_CODES_HELP
from zfsilod.model.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Subparsers = argparse._SubParsersAction["Parser"]

DEFAULTS = {"remote": "", "socket": "", "timeout": None, "json": False, "quiet": False}
HELP = {"-h", "--help"}
CHANGE_DEFAULTS = {"dry_run": False, "no_wait": False}


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise InvalidArgument(message, reason="USAGE", usage=f"{self.prog} --help")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return what was typed; `function` is the command's. Raises InvalidArgument."""
    for word in argv:
        if not word.isascii():
            _check_text(word)
    try:
        given = _by(make(argv), argv)
    except InvalidArgument:
        given = _by(make(argv, whole=True), argv)  # whose complaint names all choices
    for name, value in (DEFAULTS | CHANGE_DEFAULTS).items():
        if not hasattr(given, name):
            setattr(given, name, value)
    return given


def _by(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse; what is too much is for the command to complain of, with its own usage."""
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        given.help_of.error(f"unrecognized arguments: {' '.join(unknown)}")
    return given


def _check_text(word: str) -> None:
    """Refuse bytes that are no text: no message can carry them."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{word!r} is no UTF-8", reason="USAGE") from None


def make(typed: Sequence[str], *, whole: bool = False) -> Parser:
    """Return a parser of the commands whose words were typed, or of all.

    argparse asks for translations and the terminal's width for every command and argument: for
    all of them that takes 20 ms.
    """
    whole = whole or not HELP.isdisjoint(typed)
    parser = Parser(
        prog="zfsiloctl",
        description="Network block storage for ZFS.",
        epilog=EXIT_CODES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    _add(parser, COMMON)
    parser.set_defaults(function="")
    nouns = parser.add_subparsers(title="commands", metavar="COMMAND")
    for noun in _among(NOUNS, typed, whole=whole):
        commands = {each.verb: each for each in COMMANDS if each.noun == noun}
        if "" in commands:
            _command(nouns, noun, commands[""])
            continue
        text = NOUNS[noun]
        below = nouns.add_parser(noun, help=text, description=f"{text}.", allow_abbrev=False)
        below.set_defaults(help_of=below)
        if noun in typed:
            verbs = below.add_subparsers(title="commands", metavar="COMMAND")
            for verb in _among(commands, typed, whole=whole):
                _command(verbs, verb, commands[verb])
    parser.set_defaults(help_of=parser)
    return parser


def _among(words: Iterable[str], typed: Sequence[str], *, whole: bool) -> list[str]:
    """Return those of the words that were typed; all when none was."""
    found = [] if whole else [each for each in words if each in typed]
    return found or list(words)


def _command(into: Subparsers, name: str, command: Command) -> None:
    text = command.text
    parser = into.add_parser(name, help=text, description=f"{text}.", allow_abbrev=False)
    parser.set_defaults(function=command.function, help_of=parser)
    _add(parser, command.arguments)
    _add(parser.add_argument_group("common options"), COMMON)


def _add(parser: argparse._ActionsContainer, arguments: Sequence[Argument]) -> None:
    for each in arguments:
        options = dict(each.options)
        if each in COMMON:  # they may stand before the command and behind it
            options["default"] = argparse.SUPPRESS
        parser.add_argument(*each.names, help=each.text.replace("%", "%%"), **options)  # type: ignore[arg-type]
