"""The harness itself: boot, commands, files, reboot, power cut, and complete removal."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd import linux
from tests.systemd.namespace import Bind, InnerCommandFailed, SystemdHost

BOOT_ID = "/proc/sys/kernel/random/boot_id"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdHost]:
    """A bare machine with one folder of the host bound to /srv/shared."""
    shared = tmp_path_factory.mktemp("shared")
    (shared / "hello").write_text("from the host")
    with SystemdHost(binds=[Bind(shared, "/srv/shared")]) as machine:
        yield machine


def test_boots_without_a_failed_unit(host: SystemdHost) -> None:
    assert host.state == "running"
    assert host.run("systemctl", "--failed", "--no-legend").stdout == ""
    assert host.run("cat", "/proc/1/comm").stdout == "systemd\n"
    assert host.run("hostname").stdout.strip() == host.name


def test_is_cut_off_from_the_host(host: SystemdHost) -> None:
    for kind in ("pid", "mnt", "cgroup", "uts", "ipc", "net"):
        inside = host.run("readlink", f"/proc/self/ns/{kind}").stdout.strip()
        assert inside != os.fspath(Path(f"/proc/self/ns/{kind}").readlink())
    assert host.run("ls", "/sys/class/net").stdout.split() == ["lo"]
    assert host.run("sh", "-c", "echo 1 >/proc/sys/vm/swappiness", check=False).rc != 0
    assert host.run("mkdir", "/sys/kernel/x", check=False).rc != 0


def test_run_gives_status_output_and_user(host: SystemdHost) -> None:
    result = host.run("sh", "-c", "cat; echo no >&2; exit 3", input="yes", check=False)
    assert (result.rc, result.stdout, result.stderr) == (3, "yes", "no\n")
    with pytest.raises(InnerCommandFailed, match="sh -c 'exit 3': exit code 3"):
        host.run("sh", "-c", "exit 3")
    assert host.run("sh", "-c", "echo $A $HOME", env={"A": "b"}).stdout == "b /root\n"
    host.run("useradd", "--system", "--groups=adm", "--uid=4711", "guest")
    assert "(adm)" in host.run("id", uid=4711).stdout
    assert host.run("id", "-ru", uid=4712).stdout == "4712\n"


def test_run_kills_the_process_group_at_its_timeout(host: SystemdHost) -> None:
    before = time.monotonic()
    with pytest.raises(InnerCommandFailed, match=r"timeout after 0\.3 s"):
        host.run("sh", "-c", "sleep 60 & sleep 60", timeout_s=0.3)
    assert (
        time.monotonic() - before < 5
    )  # The fixture nothing_left asserts that no process is left.


def test_a_signal_reaches_the_process_inside(host: SystemdHost) -> None:
    script = "trap 'echo received; exit 7' TERM; echo up; while :; do sleep 0.01; done"
    with host.start("sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.stdout.read() == "received\n"
        assert process.wait(10) == 7


def test_read_write_and_copy_files(host: SystemdHost, tmp_path: Path) -> None:
    host.write("/var/lib/a/b", "text\n", mode=0o600)
    assert host.read("/var/lib/a/b") == "text\n"
    assert host.run("stat", "-c%a", "/var/lib/a/b").stdout == "600\n"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/binary").write_bytes(bytes(range(256)))
    host.copy_in(tmp_path, "/var/lib/copied")
    host.copy_in(tmp_path / "folder/binary", "/var/lib/one")
    for path in ("var/lib/copied/folder/binary", "var/lib/one"):
        assert (host.root / path).read_bytes() == bytes(range(256))
    assert host.read("/srv/shared/hello") == "from the host"
    assert host.run("touch", "/srv/shared/hello", check=False).rc != 0
    assert not Path("/var/lib/one").exists()


def test_the_checkout_and_the_python_of_the_tests_are_inside(host: SystemdHost) -> None:
    code = "import tests.systemd.linux as m; print(m.__file__)"
    path = os.fspath(Path(linux.__file__).parents[2])
    done = host.run(sys.executable, "-c", code, env={"PYTHONPATH": path})
    assert done.stdout.strip() == linux.__file__


def test_a_socket_inside_is_reached_from_outside(host: SystemdHost) -> None:
    with socket.socket(socket.AF_UNIX) as bus:
        bus.connect(os.fspath(host.root / "run/dbus/system_bus_socket"))
        bus.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        assert bus.recv(100).startswith(b"OK ")


def test_loop_device_with_a_file_system(host: SystemdHost) -> None:
    host.run("truncate", "--size=32M", "/var/lib/disk")
    loop = host.run("losetup", "--find", "--show", "/var/lib/disk").stdout.strip()
    host.run("mkfs.ext4", "-q", loop)
    host.run("mount", loop, "/mnt")
    host.run("sh", "-c", "echo kept >/mnt/file")
    host.run("umount", "/mnt")
    host.run("losetup", "--detach", loop)
    assert linux.machine_devices(host.pid).isdisjoint(linux.attached_loops().values())


def test_reboot_keeps_files_and_clears_run(host: SystemdHost) -> None:
    boot_id = host.read(BOOT_ID)
    host.write("/var/lib/survives", "yes")
    host.write("/run/goes", "")
    host.write("/tmp/goes", "")
    host.reboot()
    assert host.read(BOOT_ID) != boot_id
    assert host.read("/var/lib/survives") == "yes"
    assert not host.exists("/run/goes")
    assert not host.exists("/tmp/goes")
    boots = host.run("journalctl", "--list-boots", "--no-pager").stdout.splitlines()
    assert boot_id.strip().replace("-", "") in boots[-2]


def test_power_cut_stops_nothing_cleanly(host: SystemdHost) -> None:
    boot_id = host.read(BOOT_ID)
    stop = "ExecStop=touch /var/lib/stopped-cleanly"
    host.run("systemd-run", "--unit=busy", "-p", stop, "sleep", "600")
    host.run("sh", "-c", "truncate -s 32M /var/lib/disk && losetup --find /var/lib/disk")
    host.run("sh", "-c", "mkdir -p /srv/t && mount -t tmpfs none /srv/t && truncate -s 1M /srv/t/x")
    host.run("losetup", "--find", "/srv/t/x")
    host.power_cut()
    assert host.read(BOOT_ID) != boot_id
    assert not host.exists("/var/lib/stopped-cleanly")
    assert host.run("losetup", "--list", "--noheadings").stdout == ""
    assert "Started busy.service" in host.journal("busy")


def test_shutdown_asked_for_inside(host: SystemdHost) -> None:
    host.run("systemctl", "poweroff", "--no-block")
    host.wait_off()
    assert not host.running
    host.boot()
    assert host.state == "running"


def _traces(name: str) -> dict[str, object]:
    """Return everything that a machine may leave on the host."""
    cgroups = [mount.point for mount in linux.mounts() if mount.fstype.startswith("cgroup")]
    return {
        "mounts": sorted(mount.point for mount in linux.mounts()),
        "loops": sorted(linux.attached_loops()),
        "cgroups": [name for top in cgroups if Path(top, name).exists()],
        "children": linux.children(os.getpid()),
        "folders": list(Path(tempfile.gettempdir()).glob(f"{name}*")),
        "processes": [
            path.parent.name
            for path in Path("/proc").glob("[0-9]*/cgroup")
            if name in _read_if_exists(path)
        ],
    }


def _read_if_exists(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _use_heavily(host: SystemdHost) -> None:
    host.run("sh", "-c", "truncate -s 8M /var/lib/disk && losetup --find /var/lib/disk")
    host.run("systemd-run", "--unit=busy", "sleep", "600")
    host.run("sh", "-c", "sleep 600 >/dev/null 2>&1 &")
    host.run("mount", "-t", "tmpfs", "none", "/mnt")


def _wait_until_gone(host: SystemdHost, traces: dict[str, object]) -> None:
    deadline = time.monotonic() + 10
    while _traces(host.name) != traces and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _traces(host.name) == traces


def test_down_leaves_nothing() -> None:
    host = SystemdHost()
    before = _traces(host.name)
    host.boot()
    assert _traces(host.name) != before
    _use_heavily(host)
    host.down()
    assert _traces(host.name) == before


def test_an_error_in_the_block_leaves_nothing() -> None:
    host = SystemdHost()
    before = _traces(host.name)
    with pytest.raises(ZeroDivisionError), host:  # noqa: PT012 - tests the block
        _use_heavily(host)
        raise ZeroDivisionError
    assert _traces(host.name) == before


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param("true", id="none"),
        pytest.param("mount -t cgroup2 none /sys/fs/cgroup", id="unified"),
    ],
)
def test_other_cgroup_layouts_of_the_host(layout: str) -> None:
    code = (
        "from tests.systemd.namespace import SystemdHost\n"
        "with SystemdHost() as host: print(host.state, host.cgroup_procs)"
    )
    hidden = f'umount --recursive /sys/fs/cgroup && {layout} && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "sh", "-c", hidden, sys.executable, code]
    checkout = Path(linux.__file__).parents[2]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.stdout.startswith("running"), done.stderr
    name = done.stdout.partition("/zfsilo-")[2].partition("/")[0]
    assert _traces(f"zfsilo-{name}")["cgroups"] == []


def test_death_of_the_test_process_leaves_nothing() -> None:
    code = (
        "from tests.systemd.namespace import SystemdHost; import signal\n"
        "host = SystemdHost(); host.boot(); print(host.name, flush=True); signal.pause()"
    )
    checkout = Path(linux.__file__).parents[2]
    host = SystemdHost()
    before = _traces(host.name)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        host.name = process.stdout.readline().strip()
        assert _traces(host.name) != before
        process.send_signal(signal.SIGKILL)
    _wait_until_gone(host, before)
