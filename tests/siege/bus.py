"""Floods of local users: the system bus, and names that root needs, taken first."""

from __future__ import annotations

from tests.siege.flood import Flood

CHANGE = ("volume", "update", "data", "--label", "siege=1")
BUS = r"""
import itertools

def pad(raw):
    return raw + bytes(-len(raw) % 8)

def message(body=b"", to="org.zfsilo1", path="/org/zfsilo1", interface="org.zfsilo1.Manager",
            member="ListVolumes", signature="", flags=1):
    fields = b""
    for code, letter, text in (
        (1, b"o", path), (2, b"s", interface), (3, b"s", member), (6, b"s", to)
    ):
        fields = pad(fields) + struct.pack("<B3sI", code, b"\x01" + letter, len(text))
        fields += text.encode() + b"\0"
    if signature:
        fields = pad(fields) + struct.pack("<B3sB", 8, b"\x01g", len(signature))
        fields += signature.encode() + b"\0"
    head = struct.pack("<cBBBIII", b"l", 1, flags, 1, len(body), 7, len(fields))
    return pad(head + fields) + body

def to_bus(member, text="", flags=1):
    body = struct.pack("<I", len(text)) + text.encode() + b"\0" if text else b""
    bus = "org.freedesktop.DBus"
    return message(body, bus, "/org/freedesktop/DBus", bus, member, "s" if text else "", flags)

def client():
    end = local("/run/dbus/system_bus_socket")
    end.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
    assert end.recv(200).startswith(b"OK")
    end.sendall(b"BEGIN\r\n" + to_bus("Hello", flags=0))
    assert end.recv(4096)
    return end

def strings(count):
    return struct.pack("<I", 8 * count - 3) + bytes(8 * count - 3)
"""
LARGE = """
large = message(strings(1 << 20), signature="as", member="CreateVolume")
ready()
while True:
    try:
        end = client()
        while True:
            end.sendall(large)
    except OSError:
        pass
"""
MANY_CLIENTS = """
ends = []
try:
    while len(ends) < 240:
        ends.append(client())
except OSError:
    pass
calls = message() + message(member="Introspect", interface="org.freedesktop.DBus.Introspectable")
ready()
while True:
    for end in list(ends):
        try:
            end.sendall(calls)
        except OSError:
            ends.remove(end)
            try:
                ends.append(client())
            except OSError:
                time.sleep(0.1)
"""
# The user of a connection is not known before its first call.
NEW_CLIENTS = """
calls = b"".join(
    message(member=member, interface="org.freedesktop.DBus." + interface)
    for interface, member in (
        ("Peer", "Ping"), ("ObjectManager", "GetManagedObjects"), ("Introspectable", "Introspect")
    )
)
ready()
while True:
    try:
        end = client()
        end.sendall(calls)
        end.close()
    except OSError:
        pass
"""
HALF_OPEN = """
ready()
while True:
    ends = []
    for _number in range(500):
        try:
            end = local("/run/dbus/system_bus_socket")
            end.send(b"\\0AUTH EXTERNAL 36")
            ends.append(end)
        except OSError:
            break
    time.sleep(0.2)
"""
SUBSCRIBERS = """
rules = ["type='signal',sender='org.zfsilo1',path_namespace='/org/zfsilo1'"]
rules += ["type='signal',interface='org.freedesktop.DBus.Properties',arg0='x%d'" % number
          for number in range(500)]
ends = []
for _number in range(30):
    try:
        end = client()
        for rule in rules:
            end.sendall(to_bus("AddMatch", rule))
        ends.append(end)
    except OSError:
        break
ready()
time.sleep(600)
"""
TAKEN_NAMES = """
taken = []
for number in range(2000):
    for name in ("zfsilo-%d", "zfsilo/%d", "zfsilod-%d", "/run/zfsilo/private/%d"):
        end = socket.socket(socket.AF_UNIX)
        try:
            end.bind("\\0" + name % number)
            taken.append(end)
        except OSError:
            pass
for folder in ("/run/lock", "/tmp", "/var/tmp", "/dev/shm", "/run/zfsilo", "/run"):
    for name in ("zfsilo", "zfsilod", "zfsilo-iscsiadm.lock", "zfsilo.lock", "iscsi", "op"):
        path = folder + "/" + name
        for make in (lambda: os.mkdir(path), lambda: open(path, "x"),
                     lambda: os.symlink("/etc/shadow", path)):
            try:
                make()
            except OSError:
                pass
ready()
while True:
    for path in ("/run/zfsilo/zfsilod.sock", "/run/zfsilo/csi/zfsilod.sock",
                 "/run/zfsilo/gateway.sock", "/run/zfsilo/metrics.sock"):
        try:
            local(path).close()
        except OSError:
            pass
"""

FLOODS = [
    Flood("large messages on the bus", BUS + LARGE, during=(CHANGE,)),
    Flood("many clients of the bus", BUS + MANY_CLIENTS, during=(CHANGE,)),
    Flood("new clients of the bus", BUS + NEW_CLIENTS, copies=2, during=(CHANGE,)),
    Flood("half open clients of the bus", HALF_OPEN, during=(CHANGE,)),
    Flood("subscribers that never read", BUS + SUBSCRIBERS, during=(CHANGE,)),
    Flood("names that are taken first", TAKEN_NAMES, during=(CHANGE,)),
]
