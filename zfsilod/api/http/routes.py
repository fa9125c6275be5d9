"""The URLs of methods, from the annotations google.api.http of the proto.

In /v1/volumes/data:stats, the variable of /v1/{name=volumes/*}:stats is "volumes/data".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from google.api import annotations_pb2

from zfsilod.model.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from zfsilod.api.rpc.methods import ApiMethod

VERBS = ("get", "post", "patch", "delete", "put")
VARIABLE = re.compile(r"\{([a-z_.]+)=([A-Za-z]+)/\*\}")
SEGMENT = "[^/:]+"  # an id has neither; an escaped one is refused with the id


class Route(NamedTuple):
    """The URL of a method: which field is in its path, and which is its body ("*": all others)."""

    verb: str
    pattern: re.Pattern[str]
    variable: str  # volume.name; "": none
    body: str
    method: ApiMethod

    def value_in(self, path: str) -> str:
        """Return the value of the variable in a path that matches. Raises InvalidArgument."""
        match = self.pattern.fullmatch(path)
        assert match is not None
        if not self.variable:
            return ""
        try:
            return unquote(match[1], errors="strict")
        except UnicodeDecodeError:
            raise InvalidArgument("the path is not UTF-8", reason="BAD_NAME") from None


class Routes:
    """The routes of all methods."""

    def __init__(self, methods: Iterable[ApiMethod]) -> None:
        self._routes = [route for method in methods for route in routes_of(method)]

    def at(self, path: str) -> dict[str, Route]:
        """Return the routes of a path, by verb."""
        return {route.verb: route for route in self._routes if route.pattern.fullmatch(path)}


def routes_of(method: ApiMethod) -> Iterator[Route]:
    """Yield the routes of a method."""
    rule: Any = method.descriptor.GetOptions().Extensions[annotations_pb2.http]
    for binding in (rule, *rule.additional_bindings):
        verb = binding.WhichOneof("pattern")
        assert verb in VERBS, f"{method.descriptor.full_name} has no URL"
        template = getattr(binding, verb)
        match = VARIABLE.search(template)
        yield Route(
            verb=verb.upper(),
            pattern=_pattern(template, match),
            variable=match[1] if match else "",
            body=binding.body,
            method=method,
        )


def _pattern(template: str, variable: re.Match[str] | None) -> re.Pattern[str]:
    if variable is None:
        return re.compile(re.escape(template))
    before, after = template[: variable.start()], template[variable.end() :]
    return re.compile(f"{re.escape(before)}({variable[2]}/{SEGMENT}){re.escape(after)}")
