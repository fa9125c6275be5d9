"""The headers and bodies of responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.api.http.refusals import JSON_TYPE, status_of
from zfsilod.wire import status
from zfsilod.wire.plain import encode

if TYPE_CHECKING:
    from zfsilod.model.errors import ZfsiloError

LINES_TYPE = "application/jsonl"
# Nothing of it is for caches or for pages of a browser.
COMMON = (("cache-control", "no-store"), ("x-content-type-options", "nosniff"))

Headers = list[tuple[str, str]]


def headers_of(kind: str = JSON_TYPE, **more: str) -> Headers:
    """Return the headers of a response; `more` with underscores for hyphens, "" for none."""
    named = [(name.replace("_", "-"), value) for name, value in more.items() if value]
    return [("content-type", kind), *COMMON, *named]


def refusal(error: ZfsiloError, code: int = 0, **more: str) -> tuple[int, Headers, bytes]:
    """Return the response for an error: google.rpc.Status as JSON."""
    if error.code == "UNAUTHENTICATED":
        more["www_authenticate"] = "Bearer"
    return code or status_of(error), headers_of(**more), encode(status.as_json(error))
