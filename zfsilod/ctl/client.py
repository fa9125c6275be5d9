"""A daemon, to be asked by gRPC: the local one over its socket, a remote one over TLS."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zfsilod.model.errors import PermissionDenied, Unavailable

# The library prints its own troubles to standard error; ours say the same in a sentence.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from zfsilod.ctl import paths, rpc_errors
from zfsilod.wire.stub import Api, Streaming

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from google.protobuf.message import Message

READ_S = 30.0
CHANGE_S = 600.0
# Of volumes with all labels that they may have a hundred are 2 MiB, and grpc takes 4. Here it is
# told to take more: each page costs a look at the store.
PAGE_SIZE, LOCAL_PAGE_SIZE = 100, 1000
LOCAL_OPTIONS = (("grpc.max_receive_message_length", 64 << 20),)


class Server:
    """A daemon, and how it is called in messages."""

    def __init__(
        self, channel: grpc.Channel, where: str, timeout_s: float | None, *, local: bool = False
    ) -> None:
        self.api = Api(channel)
        self.changes = Api(Streaming(channel))
        self.local = local
        self.where = where
        self.read_s = timeout_s or READ_S
        self.change_s = timeout_s or CHANGE_S

    def ask(self, method: Any, request: Message) -> Any:
        """Call a method that only reads. Raises ZfsiloError."""
        try:
            return method(request, timeout=self.read_s)
        except grpc.RpcError as error:
            raise rpc_errors.error_of(error, self) from error

    def ask_all(self, method: Any, request: Any, field: str) -> list[Any]:
        """Call a List method, page by page, and return all it lists."""
        request.page_size = LOCAL_PAGE_SIZE if self.local else PAGE_SIZE
        found: list[Any] = []
        while True:
            page = self.ask(method, request)
            found += getattr(page, field)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found


@contextmanager
def dial(given: Namespace) -> Iterator[Server]:
    """Open a channel to the daemon that the arguments name."""
    channel, where = _remote(given.remote) if given.remote else _local(given.socket)
    with channel:
        yield Server(channel, where, given.timeout, local=not given.remote)


def _local(path: str) -> tuple[grpc.Channel, str]:
    path = path or paths.socket()
    where = f"zfsilod at {path}"
    if not os.path.exists(path):  # noqa: PTH110 - pathlib would cost more than the question
        raise Unavailable(
            f"{where} does not run: there is no such socket", reason="NO_DAEMON", socket=path
        )
    if not os.access(path, os.W_OK):
        raise PermissionDenied(
            f"the socket {path} is not open to you: become root, or a member of the group zfsilo",
            reason="NO_ACCESS",
            socket=path,
        )
    return grpc.insecure_channel(f"unix:{path}", LOCAL_OPTIONS), where


def _remote(name: str) -> tuple[grpc.Channel, str]:
    from zfsilod.ctl.server_files import channel_to, find

    server = find(name)
    return channel_to(server), f"{name} ({server.address})"
