"""Decodes one block of headers of HTTP/2: HPACK, RFC 7541.

Only the first block of a connection is decoded here, so the dynamic table starts empty. Values of
the static table are not known: no header that the gateway reads has one.
"""

from __future__ import annotations

TABLE_BYTES = 4096  # of the dynamic table: the gateway announces no other size
ENTRY_BYTES = 32  # what an entry counts beside its name and value
MAX_INTEGER_BYTES = 4

NAMES = (
    ":authority :method :method :path :path :scheme :scheme :status :status :status :status "
    ":status :status :status accept-charset accept-encoding accept-language accept-ranges accept "
    "access-control-allow-origin age allow authorization cache-control content-disposition "
    "content-encoding content-language content-length content-location content-range content-type "
    "cookie date etag expect expires from host if-match if-modified-since if-none-match if-range "
    "if-unmodified-since last-modified link location max-forwards proxy-authenticate "
    "proxy-authorization range referer refresh retry-after server set-cookie "
    "strict-transport-security transfer-encoding user-agent vary via www-authenticate"
)
STATIC = NAMES.split()
# Appendix B: the length of the code of each octet, as a letter (A is 1). The codes follow from
# their lengths: shorter ones first, then by octet.
LENGTHS = (
    "MWbbbbbbbXdbbdbbbbbbbbdbbbbbbbbbFJJLMFHKJJHKHFFFEEEFFFFFFFGHOFLJMFGGGGGGGGGGGGGGGGGGGGGGHGHMSM"
    "NFOEFEFEFFFEGGFFFEFGFEEFGGGGGOKNMbTVTTVVVWVWWWWWXWXXVWXWWWWUVWVWWXVUTVVWWUWVVXUVWWUUVUWVWWTVVV"
    "WVVWZZTSVWVYZZZaaZXYSUZaaZaXUUZZbaaaTXTUVUUWVVYYXXZWZaZZaaaaabaaaaaZd"
)


class MalformedHeaders(ConnectionAbortedError):
    """A block of headers that is not HPACK."""

    def __init__(self) -> None:
        super().__init__("malformed headers")


def decode(block: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of the first block of a connection. Raises MalformedHeaders."""
    return HeaderBlock(block).headers()


def list_bytes(headers: list[tuple[bytes, bytes]]) -> int:
    """Return the size of headers as HTTP/2 counts them."""
    return sum(len(name) + len(value) + ENTRY_BYTES for name, value in headers)


class HeaderBlock:
    """The position within a block."""

    def __init__(self, block: bytes) -> None:
        self._block = block
        self._at = 0
        self._table: list[tuple[bytes, bytes]] = []  # newest first
        self._limit = TABLE_BYTES

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return all headers."""
        headers = []
        while self._at < len(self._block):
            first = self._block[self._at]
            if first & 0x80:
                headers.append(self._entry(self._integer(7)))
            elif first & 0x40:
                headers.append(self._literal(6))
                self._insert(headers[-1])
            elif first & 0x20 and not headers:
                self._resize(self._integer(5))
            elif first & 0x20:
                raise MalformedHeaders
            else:  # not indexed, or never
                headers.append(self._literal(4))
        return headers

    def _literal(self, prefix: int) -> tuple[bytes, bytes]:
        index = self._integer(prefix)
        name = self._entry(index)[0] if index else self._string()
        return name, self._string()

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if 0 < index <= len(STATIC):
            return STATIC[index - 1].encode(), b""
        index -= len(STATIC) + 1
        if not 0 <= index < len(self._table):
            raise MalformedHeaders
        return self._table[index]

    def _insert(self, header: tuple[bytes, bytes]) -> None:
        self._table.insert(0, header)
        self._resize(self._limit)

    def _resize(self, limit: int) -> None:
        if limit > TABLE_BYTES:
            raise MalformedHeaders
        self._limit = limit
        size = 0
        for number, (name, value) in enumerate(self._table):
            size += len(name) + len(value) + ENTRY_BYTES
            if size > limit:
                del self._table[number:]
                return

    def _integer(self, prefix: int) -> int:
        mask = (1 << prefix) - 1
        number = self._next() & mask
        if number < mask:
            return number
        for position in range(MAX_INTEGER_BYTES):
            byte = self._next()
            number += (byte & 0x7F) << (7 * position)
            if not byte & 0x80:
                return number
        raise MalformedHeaders

    def _string(self) -> bytes:
        coded = self._at < len(self._block) and self._block[self._at] & 0x80
        length = self._integer(7)
        raw = self._block[self._at : self._at + length]
        if len(raw) < length:
            raise MalformedHeaders
        self._at += length
        return huffman(raw) if coded else raw

    def _next(self) -> int:
        if self._at >= len(self._block):
            raise MalformedHeaders
        self._at += 1
        return self._block[self._at - 1]


def huffman(data: bytes) -> bytes:
    """Decode a string. Raises MalformedHeaders."""
    decoded = bytearray()
    bits = count = 0  # those that are not decoded yet
    for byte in data:
        bits, count = bits << 8 | byte, count + 8
        while (symbol := _symbol(bits, count)) is not None:
            octet, length = symbol
            if octet > 255:  # the end of a string is never coded
                raise MalformedHeaders
            decoded.append(octet)
            count -= length
            bits &= (1 << count) - 1
    if count > 7 or bits != (1 << count) - 1:  # filled up with the first bits of the end's code
        raise MalformedHeaders
    return bytes(decoded)


def _symbol(bits: int, count: int) -> tuple[int, int] | None:
    """Return the first symbol and the length of its code; None: more bits are needed."""
    for length, first, symbols in CODES:
        if length > count:
            return None
        number = (bits >> (count - length)) - first
        if number < len(symbols):
            return symbols[number], length
    return None


def _codes() -> list[tuple[int, int, list[int]]]:
    """Return the length, the first code and the symbols of the codes of each length."""
    of_length: dict[int, list[int]] = {}
    for symbol, letter in enumerate(LENGTHS):
        length = ord(letter) - 64 if letter < "a" else ord(letter) - 70
        of_length.setdefault(length, []).append(symbol)
    codes, code, before = [], 0, 0
    for length, symbols in sorted(of_length.items()):
        code <<= length - before
        codes.append((length, code, symbols))
        code, before = code + len(symbols), length
    return codes


CODES = _codes()
