"""Pages of lists, and signed page tokens.

A token contains the key of the last resource that was read, a digest of method, filter and order,
and a signature of this server. It stays valid after a restart, and a client cannot forge it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from zfsilod.model.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from zfsilod.storage.transaction import Transaction

DEFAULT_SIZE, MAX_SIZE = 100, 1000
# A page ends early, with a token, when it would exceed the default message limit of clients (4 MiB)
# or when too many resources were read that do not match the filter.
MAX_PAGE_BYTES = 3 << 20
MAX_SCANNED = 10_000
ORDERS = ("", "id")
DIGEST_BYTES, MAC_BYTES = 8, 16
KEY_NAME, KEY_BYTES = "page-key", 32

T = TypeVar("T")
M = TypeVar("M", bound=Message)


class Page:
    """A validated request for a page: the number of results, and the key that they follow."""

    def __init__(self, *, size: int, after: str, query: str) -> None:
        self.size = size
        self.after = after
        self.query = query


class Pages:
    """Validates requests for pages, and signs and verifies page tokens."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def parse(self, method: str, message: Any) -> Page:
        """Check a List request. Raises InvalidArgument."""
        if message.page_size < 0:
            raise InvalidArgument("page_size is negative", reason="BAD_PAGE_SIZE")
        fields = {field.name for field in message.DESCRIPTOR.fields} - {"page_size", "page_token"}
        order = message.order_by if "order_by" in fields else ""
        if order not in ORDERS:
            raise InvalidArgument(
                f"invalid order_by {order[:80]!r}: expected id", reason="BAD_ORDER"
            )
        rest = (f"{name}={getattr(message, name)}" for name in sorted(fields))
        query = "\0".join([method, *rest])
        after = self._after(message.page_token, query) if message.page_token else ""
        return Page(size=min(message.page_size or DEFAULT_SIZE, MAX_SIZE), after=after, query=query)

    def token(self, page: Page, key: str) -> str:
        """Return the token of the page that follows a key; "": no page follows."""
        if not key:
            return ""
        body = _digest(page.query) + key.encode()
        return base64.urlsafe_b64encode(self._sign(body) + body).decode().rstrip("=")

    def _after(self, token: str, query: str) -> str:
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _bad_token() from None
        mac, body = raw[:MAC_BYTES], raw[MAC_BYTES:]
        if not hmac.compare_digest(mac, self._sign(body)):
            raise _bad_token()
        if body[:DIGEST_BYTES] != _digest(query):
            raise InvalidArgument(
                "the page token is for another filter or order",
                reason="BAD_PAGE_TOKEN",
            )
        return body[DIGEST_BYTES:].decode()

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:MAC_BYTES]


def collect(
    resources: Iterable[T],
    page: Page,
    *,
    key: Callable[[T], str],
    wanted: Callable[[T], bool],
    show: Callable[[T], M],
) -> tuple[list[M], str]:
    """Return the messages of one page, and the key that the next page follows."""
    shown: list[M] = []
    last, size = "", 0
    for scanned, resource in enumerate(resources):
        if len(shown) == page.size or size > MAX_PAGE_BYTES or scanned == MAX_SCANNED:
            return shown, last
        last = key(resource)
        if wanted(resource):
            shown.append(show(resource))
            size += shown[-1].ByteSize()
    return shown, ""


def load_key(txn: Transaction) -> bytes:
    """Return the key that signs page tokens; create it on first use."""
    key = txn.get_raw("meta", KEY_NAME)
    if key is None:
        key = secrets.token_bytes(KEY_BYTES)
        txn.put_raw("meta", KEY_NAME, key)
    return key


def _digest(query: str) -> bytes:
    return hashlib.sha256(query.encode()).digest()[:DIGEST_BYTES]


def _bad_token() -> InvalidArgument:
    return InvalidArgument("the page token is not from this server", reason="BAD_PAGE_TOKEN")
