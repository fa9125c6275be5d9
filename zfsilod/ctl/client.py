"""gRPC clients of a daemon: the local one over its socket, a remote one over TLS."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zfsilod.model.errors import PermissionDenied, Unavailable

# The library would print its own messages to standard error besides the error that it raises.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from zfsilod.ctl import paths, rpc_errors
from zfsilod.wire.stub import Api, Streaming

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from google.protobuf.message import Message

    from zfsilod.model.errors import ZfsiloError

READ_S = 30.0
CHANGE_S = 600.0
# A hundred volumes with as many labels as allowed take 2 MiB; grpc accepts 4 MiB. The local channel
# accepts more, since each page costs the daemon a scan of the store.
PAGE_SIZE, LOCAL_PAGE_SIZE = 100, 1000
LOCAL_OPTIONS = (("grpc.max_receive_message_length", 64 << 20),)


class Server:
    """A daemon: its services, its timeouts, and its name in messages."""

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
            raise self.error_of(error) from error

    def ask_all(self, method: Any, request: Any, field: str) -> list[Any]:
        """Call a List method page by page, and return all entries of `field`."""
        request.page_size = LOCAL_PAGE_SIZE if self.local else PAGE_SIZE
        entries: list[Any] = []
        while True:
            page = self.ask(method, request)
            entries += getattr(page, field)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return entries

    def error_of(self, error: grpc.RpcError) -> ZfsiloError:
        """Return the error of a call that failed."""
        return rpc_errors.error_of(error, self.where, local=self.local)


@contextmanager
def dial(args: Namespace) -> Iterator[Server]:
    """Open a channel to the daemon that the arguments name."""
    if args.remote:
        from zfsilod.ctl.server_files import channel_to, find

        server = find(args.remote)
        channel, where = channel_to(server), f"{args.remote} ({server.address})"
    else:
        channel, where = _local(args.socket)
    with channel:
        yield Server(channel, where, args.timeout, local=not args.remote)


def _local(path: str) -> tuple[grpc.Channel, str]:
    path = path or paths.socket()
    if not os.path.exists(path):  # noqa: PTH110 - importing pathlib takes longer than the call
        raise Unavailable(
            f"zfsilod is not running: its socket {path} does not exist",
            reason="NO_DAEMON",
            socket=path,
        )
    if not os.access(path, os.W_OK):
        raise PermissionDenied(
            f"no access to the socket {path}: use sudo, or join the group zfsilo",
            reason="NO_ACCESS",
            socket=path,
        )
    return grpc.insecure_channel(f"unix:{path}", LOCAL_OPTIONS), f"zfsilod at {path}"
