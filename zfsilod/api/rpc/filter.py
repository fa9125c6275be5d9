"""Filters of lists: a subset of AIP-160. No I/O.

    filter     = conjunction
    conjunction = factor { "AND" factor }
    factor     = term { "OR" term }            OR has precedence over AND, as in AIP-160
    term       = [ "NOT" ] ( comparison | "(" conjunction ")" )
    comparison = field ( "=" | "!=" | ":" ) value
    field      = NAME | "labels." NAME         value = WORD | "quoted text"

`:` means "starts with"; `labels : app` means "has the label app". A field of several values, such
as `host`, matches if any of them does, with `!=` if none is equal. The values of an enumeration,
such as `state`, are accepted in any case; others are refused, as they could never match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from zfsilod.model.errors import InvalidArgument

MAX_CHARACTERS = 2048
MAX_DEPTH = 16
TOKEN = re.compile(
    r"""\s*(?:
        (?P<operator> != | [=:()])
      | (?P<quoted> "(?:[^"\\]|\\["\\])*")
      | (?P<word> [A-Za-z0-9._/*-]+)
    )""",
    re.VERBOSE,
)

Values = tuple[str, ...]
Fields = Callable[[str], Values]
"""Returns the values of a field of one resource."""
Predicate = Callable[[Fields], bool]
Enumerations = Mapping[str, tuple[str, ...]]
"""The values of the fields that are enumerations, in upper case."""
NO_ENUMERATIONS: Enumerations = {}


class Lexeme(NamedTuple):
    """A token of a filter; `kind` is operator, quoted or word."""

    kind: str
    text: str


def parse(
    text: str, fields: tuple[str, ...], enumerations: Enumerations = NO_ENUMERATIONS
) -> Predicate:
    """Return the filter over these fields. Raises InvalidArgument.

    The field "labels" includes labels.NAME.
    """
    if not text.strip():
        return lambda _fields: True
    if len(text) > MAX_CHARACTERS:
        raise _bad(f"longer than {MAX_CHARACTERS} characters")
    parser = _Parser(_split(text), fields, enumerations)
    predicate = parser.conjunction(MAX_DEPTH)
    parser.expect_end()
    return predicate


def label_values(labels: Mapping[str, str], field: str) -> Values:
    """Return the values of `labels` (its names) or of `labels.NAME`."""
    if field == "labels":
        return tuple(labels)
    value = labels.get(field.removeprefix("labels."))
    return () if value is None else (value,)


class _Parser:
    """A recursive descent parser, with one method for each rule of the grammar."""

    def __init__(
        self, tokens: list[Lexeme], fields: tuple[str, ...], enumerations: Enumerations
    ) -> None:
        self._tokens = tokens
        self._next = 0
        self._fields = fields
        self._enumerations = enumerations

    def conjunction(self, depth: int) -> Predicate:
        parts = [self._factor(depth)]
        while self._take("AND"):
            parts.append(self._factor(depth))
        return parts[0] if len(parts) == 1 else lambda fields: all(part(fields) for part in parts)

    def expect_end(self) -> None:
        if self._next < len(self._tokens):
            raise _bad(f"unexpected {self._tokens[self._next].text[:80]!r}")

    def _factor(self, depth: int) -> Predicate:
        parts = [self._term(depth)]
        while self._take("OR"):
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else lambda fields: any(part(fields) for part in parts)

    def _term(self, depth: int) -> Predicate:
        if depth == 0:
            raise _bad(f"nested more than {MAX_DEPTH} deep")
        if self._take("NOT"):
            negated = self._term(depth - 1)
            return lambda fields: not negated(fields)
        if self._take("("):
            inner = self.conjunction(depth - 1)
            if not self._take(")"):
                raise _bad("missing closing parenthesis")
            return inner
        return self._comparison()

    def _comparison(self) -> Predicate:
        field = self._pop("word", "a field")
        is_label = "labels" in self._fields and field.startswith("labels.")
        if field not in self._fields and not is_label:
            raise _bad(f"unknown field {field[:80]!r}: expected one of {', '.join(self._fields)}")
        operator = self._pop("operator", f"=, != or : after {field[:80]}")
        value = self._pop("value", f"a value after {field[:80]} {operator}")
        if names := self._enumerations.get(field):
            prefix = operator == ":" and any(name.startswith(value.upper()) for name in names)
            if value.upper() not in names and not prefix:
                raise _bad(f"unknown {field} {value[:80]!r}: expected one of {', '.join(names)}")
            value = value.upper()
        match operator:
            case "=":
                return lambda fields: value in fields(field)
            case "!=":
                return lambda fields: value not in fields(field)
            case ":" if field == "labels":
                return lambda fields: value in fields(field)
            case ":":
                return lambda fields: any(text.startswith(value) for text in fields(field))
        raise _bad(f"{operator!r} is not a comparison")

    def _take(self, text: str) -> bool:
        """Consume a keyword or sign if it is next."""
        token = self._tokens[self._next] if self._next < len(self._tokens) else None
        if token is None or token.text != text or token.kind == "quoted":
            return False
        self._next += 1
        return True

    def _pop(self, kind: str, wanted: str) -> str:
        token = self._tokens[self._next] if self._next < len(self._tokens) else Lexeme("", "")
        if token.kind not in (("word", "quoted") if kind == "value" else (kind,)):
            raise _bad(f"expected {wanted}, not {token.text[:80] or 'the end'!r}")
        self._next += 1
        if token.kind == "quoted":
            return re.sub(r"\\(.)", r"\1", token.text[1:-1])
        return token.text


def _split(text: str) -> list[Lexeme]:
    text = text.rstrip()
    tokens, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _bad(f'unexpected {text[at:].strip()[:20]!r}; quote values: "..."')
        tokens.append(Lexeme(match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return tokens


def _bad(message: str) -> InvalidArgument:
    return InvalidArgument(f"invalid filter: {message}", reason="BAD_FILTER")
