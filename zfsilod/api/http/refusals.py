"""Requests that are refused before a method is known, and the HTTP status of errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.model.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ZfsiloError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

STATUSES = {  # of google/rpc/code.proto
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
BY_REASON = {"BAD_METHOD": 405, "BODY_TOO_LARGE": 413, "BAD_CONTENT_TYPE": 415}
MAX_BODY_BYTES = 1 << 20  # as of a message of gRPC
JSON_TYPE = "application/json"


def status_of(error: ZfsiloError) -> int:
    """Return the HTTP status of an error."""
    return BY_REASON.get(error.reason) or STATUSES[error.code]


def no_url(path: str) -> NotFound:
    """Return the error for a URL that no method has."""
    return NotFound(f"no method has the URL {path[:160]}; see /v1/openapi.json", reason="NO_URL")


def bad_method(path: str, allowed: Iterable[str]) -> InvalidArgument:
    """Return the error for a URL that other methods of HTTP have."""
    return InvalidArgument(
        f"{path[:160]} takes {', '.join(allowed)} only", reason="BAD_METHOD", path=path[:160]
    )


def too_large() -> ResourceExhausted:
    """Return the error for a body that is too large."""
    return ResourceExhausted(
        f"the body has more than {MAX_BODY_BYTES} bytes", reason="BODY_TOO_LARGE"
    )


def bad_http(problem: str) -> InvalidArgument:
    """Return the error for a request that is not valid HTTP."""
    return InvalidArgument(f"malformed HTTP request: {problem}", reason="BAD_HTTP")


def check_headers(headers: Mapping[str, str]) -> None:
    """Refuse what a page in a browser sends, and what two servers may read differently.

    A browser adds the identity of its user (a client certificate) to the requests of any page, but
    names the page in Origin, or in Sec-Fetch-Site: "none" is an address that the user has typed.
    """
    if "origin" in headers or headers.get("sec-fetch-site", "none") != "none":
        raise PermissionDenied(
            "requests of pages in a browser are refused; use a client of HTTP", reason="BROWSER"
        )
    if "transfer-encoding" in headers and "content-length" in headers:
        raise bad_http("both Content-Length and Transfer-Encoding")
    if "upgrade" in headers and "http2-settings" in headers:
        raise bad_http("HTTP/2 begins with its preface here, not with an upgrade")


def check_body_type(headers: Mapping[str, str]) -> None:
    """Refuse a body that is not said to be JSON: a form of a page could be read as such."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON_TYPE:
        raise InvalidArgument(
            f"a body needs the header Content-Type: {JSON_TYPE}", reason="BAD_CONTENT_TYPE"
        )
