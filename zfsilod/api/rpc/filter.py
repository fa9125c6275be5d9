"""Filters of lists: the part of AIP-160 that is worth having. No I/O.

    filter     = conjunction
    conjunction = factor { "AND" factor }
    factor     = term { "OR" term }            OR binds more closely than AND, as AIP-160 has it
    term       = [ "NOT" ] ( comparison | "(" conjunction ")" )
    comparison = field ( "=" | "!=" | ":" ) value
    field      = NAME | "labels." NAME         value = WORD | "quoted text"

`:` is "begins with"; `labels : app` is "has the label app". A field of several values, such as
`host`, is met by any of them; `!=` by none. Of a field whose words are known, such as `state`, any
case is good, and any other word is refused: a filter that can match nothing is a mistake.
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
"""Gives the values that a thing has in a field."""
Predicate = Callable[[Fields], bool]
Words = Mapping[str, tuple[str, ...]]
"""The words that stand in a field, all in upper case, for the fields whose words are known."""
NO_WORDS: Words = {}


class Token(NamedTuple):
    """A piece of a filter; `kind` is operator, quoted or word."""

    kind: str
    text: str


def everything(_fields: Fields) -> bool:
    """Be the filter that lets everything through."""
    return True


def parse(text: str, fields: tuple[str, ...], words: Words = NO_WORDS) -> Predicate:
    """Return the filter over these fields ("labels" brings its entries), or InvalidArgument."""
    if not text.strip():
        return everything
    if len(text) > MAX_CHARACTERS:
        raise _bad(f"it is longer than {MAX_CHARACTERS} characters")
    parser = _Parser(_split(text), fields, words)
    found = parser.conjunction(MAX_DEPTH)
    parser.expect_end()
    return found


def label_values(labels: Mapping[str, str], field: str) -> Values:
    """Return the values of `labels` (its names) or of `labels.NAME`."""
    if field == "labels":
        return tuple(labels)
    value = labels.get(field.removeprefix("labels."))
    return () if value is None else (value,)


class _Parser:
    """Recursive descent, a method for a rule."""

    def __init__(self, tokens: list[Token], fields: tuple[str, ...], words: Words) -> None:
        self._tokens = tokens
        self._next = 0
        self._fields = fields
        self._words = words

    def conjunction(self, depth: int) -> Predicate:
        parts = [self._factor(depth)]
        while self._take("AND"):
            parts.append(self._factor(depth))
        return parts[0] if len(parts) == 1 else lambda fields: all(each(fields) for each in parts)

    def expect_end(self) -> None:
        if self._next < len(self._tokens):
            raise _bad(f"{self._tokens[self._next].text[:80]!r} is not expected there")

    def _factor(self, depth: int) -> Predicate:
        parts = [self._term(depth)]
        while self._take("OR"):
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else lambda fields: any(each(fields) for each in parts)

    def _term(self, depth: int) -> Predicate:
        if depth == 0:
            raise _bad(f"it is nested more than {MAX_DEPTH} deep")
        if self._take("NOT"):
            negated = self._term(depth - 1)
            return lambda fields: not negated(fields)
        if self._take("("):
            inner = self.conjunction(depth - 1)
            if not self._take(")"):
                raise _bad("a closing parenthesis is missing")
            return inner
        return self._comparison()

    def _comparison(self) -> Predicate:
        field = self._pop("word", "a field")
        if field not in self._fields and not self._is_label(field):
            raise _bad(f"there is no field {field[:80]!r}, but {', '.join(self._fields)}")
        operator = self._pop("operator", f"=, != or : after {field[:80]}")
        value = self._pop("value", f"a value after {field[:80]} {operator}")
        if field in self._words:
            value = self._word(field, value, beginning=operator == ":")
        match operator:
            case "=":
                return lambda fields: value in fields(field)
            case "!=":
                return lambda fields: value not in fields(field)
            case ":" if field == "labels":
                return lambda fields: value in fields(field)
            case ":":
                return lambda fields: any(each.startswith(value) for each in fields(field))
        raise _bad(f"{operator!r} is no comparison")

    def _word(self, field: str, value: str, *, beginning: bool) -> str:
        """Return a value as the field has it, or its beginning. Raises InvalidArgument."""
        words, wanted = self._words[field], value.upper()
        if wanted not in words and not (beginning and any(w.startswith(wanted) for w in words)):
            raise _bad(f"{value[:80]!r} is no {field}, but {', '.join(words)}")
        return wanted

    def _is_label(self, field: str) -> bool:
        return "labels" in self._fields and field.startswith("labels.")

    def _take(self, text: str) -> bool:
        """Pass over a keyword or sign if it is next."""
        token = self._tokens[self._next] if self._next < len(self._tokens) else None
        if token is None or token.text != text or token.kind == "quoted":
            return False
        self._next += 1
        return True

    def _pop(self, kind: str, wanted: str) -> str:
        token = self._tokens[self._next] if self._next < len(self._tokens) else Token("", "")
        if token.kind not in (("word", "quoted") if kind == "value" else (kind,)):
            raise _bad(f"{wanted} is expected, not {token.text[:80] or 'the end'!r}")
        self._next += 1
        if token.kind == "quoted":
            return re.sub(r"\\(.)", r"\1", token.text[1:-1])
        return token.text


def _split(text: str) -> list[Token]:
    text = text.rstrip()
    tokens, at = [], 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise _bad(f'{text[at:].strip()[:20]!r} cannot be read; quote values: "..."')
        tokens.append(Token(found.lastgroup, found[found.lastgroup]))
        at = found.end()
    return tokens


def _bad(what: str) -> InvalidArgument:
    return InvalidArgument(f"the filter is wrong: {what}", reason="BAD_FILTER")
