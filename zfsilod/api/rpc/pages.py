"""Pages of lists: what a request asks for, and signed tokens that say where the next page begins.

A token carries the key of the last thing that was looked at, and is bound to method, filter and
order by a digest and to this server by a signature. So it is good after a restart, and nobody can
make one up.
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

    from zfsilod.storage.store import Transaction

DEFAULT_SIZE, MAX_SIZE = 100, 1000
# A page ends early when a client would not take more (4 MiB), or when the filter matches so little
# that the server would be busy for long. It then has a token and goes on from there.
MAX_PAGE_BYTES = 3 << 20
MAX_SCANNED = 10_000
ORDERS = ("", "id")
DIGEST_BYTES, MAC_BYTES = 8, 16
KEY_NAME, KEY_BYTES = "page-key", 32

T = TypeVar("T")
M = TypeVar("M", bound=Message)


class Page:
    """A checked request for a page: how many things, from behind which key."""

    def __init__(self, *, size: int, after: str, query: str) -> None:
        self.size = size
        self.after = after
        self.query = query


class Pages:
    """Reads requests for pages and makes the tokens of the next ones."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def parse(self, method: str, message: Any) -> Page:
        """Check a List request. Raises InvalidArgument."""
        if message.page_size < 0:
            raise InvalidArgument("page_size is negative", reason="BAD_PAGE_SIZE")
        fields = {each.name for each in message.DESCRIPTOR.fields} - {"page_size", "page_token"}
        order = message.order_by if "order_by" in fields else ""
        if order not in ORDERS:
            raise InvalidArgument(
                f"lists cannot be ordered by {order[:80]!r}, only by id", reason="BAD_ORDER"
            )
        rest = (f"{name}={getattr(message, name)}" for name in sorted(fields))
        query = "\0".join([method, *rest])
        after = self._after(message.page_token, query) if message.page_token else ""
        return Page(size=min(message.page_size or DEFAULT_SIZE, MAX_SIZE), after=after, query=query)

    def token(self, page: Page, key: str) -> str:
        """Return the token for what comes behind a key; "": nothing does."""
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
                "the page token is of a request with another filter or order",
                reason="BAD_PAGE_TOKEN",
            )
        return body[DIGEST_BYTES:].decode()

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:MAC_BYTES]


def collect(
    things: Iterable[T],
    page: Page,
    *,
    key: Callable[[T], str],
    wanted: Callable[[T], bool],
    show: Callable[[T], M],
) -> tuple[list[M], str]:
    """Return the wanted ones of a page as messages, and the key that the next one begins behind."""
    shown: list[M] = []
    last, size = "", 0
    for scanned, thing in enumerate(things):
        if len(shown) == page.size or size > MAX_PAGE_BYTES or scanned == MAX_SCANNED:
            return shown, last
        last = key(thing)
        if wanted(thing):
            shown.append(show(thing))
            size += shown[-1].ByteSize()
    return shown, ""


def load_key(txn: Transaction) -> bytes:
    """Return the key that page tokens are signed with, and make it on first use."""
    found = txn.get_raw("meta", KEY_NAME)
    if found is None:
        found = secrets.token_bytes(KEY_BYTES)
        txn.put_raw("meta", KEY_NAME, found)
    return found


def _digest(query: str) -> bytes:
    return hashlib.sha256(query.encode()).digest()[:DIGEST_BYTES]


def _bad_token() -> InvalidArgument:
    return InvalidArgument("the page token is not one of this server's", reason="BAD_PAGE_TOKEN")
