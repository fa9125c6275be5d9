"""Access to both machines without identity: every interface must refuse it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from tests.channel import tls_channel
from zfsilod.api.rpc.server import HEALTH, REFLECTION
from zfsilod.security.authorization import ACTIONS
from zfsilod.security.join_file import Access, parse_join
from zfsilod.wire.stub import SERVICES, path_of

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor

    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

CALL_MEMBERS_S = 400
CALL_S = 30
ATTEMPTS = 5
# Calls all members of D-Bus as user nobody, without arguments: access is checked before arguments.
CALL_MEMBERS = """
import json, os, subprocess, sys
os.setgid(65534); os.setuid(65534)
errors = {}
for member in json.loads(sys.argv[1]):
    interface, _dot, name = member.rpartition(".")
    argv = ["busctl", "call", "org.zfsilo1", "/org/zfsilo1", interface, name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    errors[member] = done.stderr.strip() if done.returncode else "ANSWERED"
print(json.dumps(errors))
"""
CONNECT_SOCKETS = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
for path in sys.argv[1:]:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
    except OSError as error:
        print(path, type(error).__name__)
    else:
        print(path, "open")
"""
# Scans all TCP ports of a machine; a port that neither accepts nor refuses counts as open.
SCAN = """
import errno, select, socket, sys
address = socket.gethostbyname(sys.argv[1])
open_ports = []
for first in range(1, 65536, 500):
    poll, pending = select.poll(), {}
    for port in range(first, min(first + 500, 65536)):
        link = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if link.connect_ex((address, port)) in (0, errno.EINPROGRESS):
            pending[link.fileno()] = port, link
            poll.register(link, select.POLLOUT)
    while pending:
        ready = poll.poll(5000)
        if not ready:
            break
        for descriptor, _event in ready:
            port, link = pending.pop(descriptor)
            poll.unregister(descriptor)
            if link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                open_ports.append(port)
            link.close()
    open_ports += [port for port, _link in pending.values()]
print(*open_ports)
"""
# 22: sshd of the image. 3260: the kernel's target, while a volume is exported. 9750: zfsilod.
EXPECTED_PORTS = {"give": {"22", "3260", "9750"}, "take": {"22"}}
SCAN_S = 600


@pytest.mark.long
@pytest.mark.timeout(1500, func_only=True)
class TestUnauthenticatedAccess:
    """gRPC over the network, D-Bus, TCP ports and local sockets."""

    def test_every_grpc_method_refuses(self, pair: Pair) -> None:
        channel = tls_channel(anonymous_access(pair.give))
        services = (*SERVICES, HEALTH, REFLECTION)
        methods = [method for service in services for method in service.methods]
        codes = {path_of(method): answered_code(channel, method) for method in methods}
        assert len(codes) > 50
        assert set(codes.values()) == {grpc.StatusCode.UNAUTHENTICATED}, codes

    def test_every_dbus_member_refuses(self, pair: Pair) -> None:
        members = [member for member in ACTIONS if ".Introspectable." not in member]
        for machine in (pair.give, pair.take):
            command = ("python3", "-c", CALL_MEMBERS, json.dumps(members))
            errors = json.loads(machine.run(*command, timeout_s=CALL_MEMBERS_S).stdout)
            assert set(errors) == set(members)
            assert [name for name, text in errors.items() if "ANSWERED" in text] == []

    def test_no_other_port_is_open(self, pair: Pair) -> None:
        def scan(machine: Machine) -> None:
            other = "take" if machine.name == "give" else "give"
            scanned = machine.run("python3", "-c", SCAN, other, timeout_s=SCAN_S)
            print(f"{other}: {scanned.stdout.strip() or 'none'} open, in {scanned.seconds:.0f} s")
            assert set(scanned.stdout.split()) <= EXPECTED_PORTS[other]

        pair.both(scan)

    def test_no_local_socket_accepts(self, pair: Pair) -> None:
        paths = ("/run/zfsilo/zfsilod.sock", "/run/zfsilo/csi/zfsilod.sock")
        for machine in (pair.give, pair.take):
            results = machine.run("python3", "-c", CONNECT_SOCKETS, *paths).stdout
            assert "open" not in results


def anonymous_access(give: Machine) -> Access:
    """Return access to give with its CA certificate, but without a client certificate."""
    words = ("pki", "issue", "user", "nobody", "--role", "reader", "--address", "give")
    issued = parse_join(give.run("zfsiloctl", *words, "--file", "-").stdout)
    address = f"127.0.0.1:{give.forward(9750)}"
    return Access(
        name="give", address=address, tls_name=issued.tls_name, authority=issued.authority
    )


def answered_code(channel: grpc.Channel, method: MethodDescriptor) -> grpc.StatusCode:
    """Return the status code of the first call that is answered, or of the last one.

    The gateway closes a connection without an identity after 10 s, and after 16 calls; the call of
    that moment is lost with it.
    """
    for _attempt in range(ATTEMPTS):
        code = status_code(channel, method)
        if code != grpc.StatusCode.UNAVAILABLE:
            break
    return code


def status_code(channel: grpc.Channel, method: MethodDescriptor) -> grpc.StatusCode:
    """Call a method with an empty request and return its status code."""
    request = GetMessageClass(method.input_type)
    parse = GetMessageClass(method.output_type).FromString
    write = request.SerializeToString
    try:
        if method.client_streaming:
            stream = channel.stream_stream(path_of(method), write, parse)
            next(stream(iter([request()]), timeout=CALL_S))
        elif method.server_streaming:
            next(channel.unary_stream(path_of(method), write, parse)(request(), timeout=CALL_S))
        else:
            channel.unary_unary(path_of(method), write, parse)(request(), timeout=CALL_S)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK
