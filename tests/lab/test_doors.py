"""The doors of both machines, tried by somebody without any identity."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from zfsilod.api.rpc.server import HEALTH, REFLECTION
from zfsilod.security.authorization import ACTIONS
from zfsilod.security.join_file import Access, parse_join
from zfsilod.wire.channel import tls_channel
from zfsilod.wire.stub import SERVICES, path_of

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor

    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

ASK_S = 400
CALL_S = 30
# As nobody: each member of D-Bus at its object, with no argument; whatever is asked, refused first.
ASK = """
import json, os, subprocess, sys
os.setgid(65534); os.setuid(65534)
said = {}
for member in json.loads(sys.argv[1]):
    interface, _dot, name = member.rpartition(".")
    argv = ["busctl", "call", "org.zfsilo1", "/org/zfsilo1", interface, name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    said[member] = done.stderr.strip() if done.returncode else "ANSWERED"
print(json.dumps(said))
"""
SOCKETS = """
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


# Every TCP port of a machine: a closed one refuses at once, one that says nothing counts as open.
SCAN = """
import errno, select, socket, sys
address = socket.gethostbyname(sys.argv[1])
found = []
for first in range(1, 65536, 500):
    poll, asked = select.poll(), {}
    for port in range(first, min(first + 500, 65536)):
        each = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if each.connect_ex((address, port)) in (0, errno.EINPROGRESS):
            asked[each.fileno()] = port, each
            poll.register(each, select.POLLOUT)
    while asked:
        ready = poll.poll(5000)
        if not ready:
            break
        for descriptor, _event in ready:
            port, each = asked.pop(descriptor)
            poll.unregister(descriptor)
            if each.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(port)
            each.close()
    found += [port for port, _each in asked.values()]
print(*found)
"""
# Of the image's sshd; of zfsilod, and of the kernel's target while something is exported.
PORTS = {"give": {"22", "3260", "9750"}, "take": {"22"}}
SCAN_S = 600


@pytest.mark.timeout(1500, func_only=True)
class TestDoors:
    """Nobody comes in: by gRPC over the network, by D-Bus, by the local sockets."""

    def test_no_method_of_grpc_answers(self, pair: Pair) -> None:
        channel = tls_channel(nobody(pair.give))
        services = (*SERVICES, HEALTH, REFLECTION)
        methods = [method for service in services for method in service.methods]
        answers = {path_of(method): code_of(channel, method) for method in methods}
        assert len(answers) > 50
        assert set(answers.values()) == {grpc.StatusCode.UNAUTHENTICATED}, answers

    def test_no_member_of_dbus_answers(self, pair: Pair) -> None:
        members = [each for each in ACTIONS if ".Introspectable." not in each]
        for machine in (pair.give, pair.take):
            asked = ("python3", "-c", ASK, json.dumps(members))
            said = json.loads(machine.run(*asked, timeout_s=ASK_S).stdout)
            assert set(said) == set(members)
            wrong = {name: text for name, text in said.items() if "ANSWERED" in text}
            assert not wrong

    def test_no_other_port_is_open(self, pair: Pair) -> None:
        def scan(machine: Machine) -> None:
            other = "take" if machine.name == "give" else "give"
            scanned = machine.run("python3", "-c", SCAN, other, timeout_s=SCAN_S)
            print(f"{other}: {scanned.stdout.strip() or 'none'} open, in {scanned.seconds:.0f} s")
            assert set(scanned.stdout.split()) <= PORTS[other]

        pair.both(scan)

    def test_no_local_socket_lets_in(self, pair: Pair) -> None:
        paths = ("/run/zfsilo/zfsilod.sock", "/run/zfsilo/csi/zfsilod.sock")
        for machine in (pair.give, pair.take):
            said = machine.run("python3", "-c", SOCKETS, *paths).stdout
            assert "open" not in said


def nobody(give: Machine) -> Access:
    """Return how give is reached by somebody who has its authority's name, and nothing else."""
    words = ("pki", "issue", "user", "nobody", "--role", "reader", "--address", "give")
    known = parse_join(give.run("zfsiloctl", *words, "--file", "-").stdout)
    address = f"127.0.0.1:{give.forward(9750)}"
    return Access(
        name="give", address=address, tls_name=known.tls_name, authority=known.authority
    )  # fmt: skip


def code_of(channel: grpc.Channel, method: MethodDescriptor) -> grpc.StatusCode:
    """Call a method with an empty request, and return what came of it."""
    request = GetMessageClass(method.input_type)
    parse = GetMessageClass(method.output_type).FromString
    write = request.SerializeToString
    try:
        if method.client_streaming:
            asked = channel.stream_stream(path_of(method), write, parse)
            next(asked(iter([request()]), timeout=CALL_S))
        elif method.server_streaming:
            next(channel.unary_stream(path_of(method), write, parse)(request(), timeout=CALL_S))
        else:
            channel.unary_unary(path_of(method), write, parse)(request(), timeout=CALL_S)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK
