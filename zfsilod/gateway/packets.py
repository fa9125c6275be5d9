"""The private connection between the gateway and the daemon: packets on a unix socket.

The gateway asks, the daemon answers. A packet is a JSON object; a descriptor may come with it:

    gateway                                     daemon
    ask settings                                tell settings (a file), or unchanged
    ask connection: id, address, certificate,   tell connection (a socket to the server of gRPC
        token, digest, http                         or HTTP), or refused
    ask refused: address, path, reason          (no answer: it is for the audit)
    ask closed: id                              tell close: id, why
                                                tell stream: id (no more calls come on it)
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from zfsilod.model.identity import Certified, Identity, Peer

PACKET_BYTES = 65536
MAX_SETTINGS_BYTES = 16 << 20

Packet = dict[str, Any]


def send(link: socket.socket, packet: Packet, descriptor: int | None = None) -> None:
    """Send a packet. Raises BlockingIOError when the other side does not read, and OSError."""
    raw = json.dumps(packet).encode()
    socket.send_fds(link, [raw], [] if descriptor is None else [descriptor])


def receive(link: socket.socket) -> tuple[Packet, int | None] | None:
    """Return a packet and its descriptor, or None at the end. Raises OSError and ValueError."""
    raw, descriptors, flags, _address = socket.recv_fds(link, PACKET_BYTES, 4)
    if not raw:
        return None
    for surplus in descriptors[1:]:
        os.close(surplus)
    try:
        packet = parse(raw)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("not a whole packet of zfsilod")
    except ValueError:
        for descriptor in descriptors[:1]:
            os.close(descriptor)
        raise
    return packet, descriptors[0] if descriptors else None


def parse(raw: bytes) -> Packet:
    """Return a packet. Raises ValueError: the other side may be another user."""
    try:
        packet = json.loads(raw, parse_float=_refuse, parse_constant=_refuse)
    except RecursionError:
        packet = None
    if not isinstance(packet, dict):
        raise ValueError("not a packet of zfsilod")
    return packet


def _refuse(text: str) -> None:
    raise ValueError(f"{text[:20]} in a packet of zfsilod")


def of_peer(peer: Peer) -> Packet:
    """Return the packet's fields for a TCP peer."""
    certificate = _plain(peer.certificate)
    return {"address": peer.address, "certificate": certificate, "token": peer.token}


def peer_of_packet(packet: Packet) -> Peer:
    """Reverse `of_peer`. Raises TypeError or KeyError for other fields."""
    plain = packet["certificate"]
    certificate = plain and Certified(**plain | {"identity": Identity(**plain["identity"])})
    address, token = str(packet["address"]), str(packet["token"])
    return Peer(kind="tcp", address=address, certificate=certificate, token=token)


def to_file(content: Packet) -> int:
    """Return a descriptor of a file in memory: settings may be larger than a packet."""
    descriptor = os.memfd_create("zfsilo-settings")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(json.dumps(content).encode())
    return descriptor


def from_file(descriptor: int) -> Packet:
    """Return the content of such a file, and close it."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        content: Packet = json.loads(file.read(MAX_SETTINGS_BYTES))
    return content


def _plain(certificate: Certified | None) -> Packet | None:
    if certificate is None:
        return None
    identity = {name: getattr(certificate.identity, name) for name in Identity.FIELDS}
    fields = {name: getattr(certificate, name) for name in Certified.FIELDS}
    return fields | {"identity": identity}
