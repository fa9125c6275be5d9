"""Behaviour of systemd, D-Bus and polkit that zfsilo relies on."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.namespace import SystemdHost
from zfsilod.systemd.sandbox import OWN_PATHS, settings

UNITS = Path(__file__).parents[2] / "units"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
ROLLBACK = """\
[Unit]
{dependencies}
[Service]
Type=oneshot
Slice=zfsilo.slice
ExecStart=sh -c 'echo "$MONITOR_UNIT $MONITOR_SERVICE_RESULT" >/var/lib/rolled-back-%i'
"""
# Like a volume unit at shutdown: its stop starts an operation, which fails.
HOLDER = """\
[Unit]
After=dbus.socket dbus.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=true
ExecStop=-{operation}
ExecStop=-timeout 1 sh -c 'until [ -e /var/lib/rolled-back-x ]; do sleep 0.02; done'
"""
BOOT_ID_UNIT = """\
[Service]
Type=oneshot
ProcSubset=pid
Environment=B=%b
ExecStart=sh -c 'echo id $B'
"""
# docs/decisions/0010: what a daemon that is not root may start.
TEMPLATE = """\
[Unit]
CollectMode=inactive-or-failed
[Service]
Type=oneshot
ExecStart=sh -c 'id -u >/var/lib/started-%i'
"""
RULE = """\
polkit.addRule(function(action, subject) {
    if (action.id == "org.freedesktop.systemd1.manage-units" && subject.user == "nobody"
            && action.lookup("verb") == "start"
            && /^zfsilo-(pool|target)@[0-9a-z]{26}[.]service$/.test(action.lookup("unit")))
        return polkit.Result.YES;
});
"""
# What zfsilod/host/io_limits.py does with the unit of limits, without the controller io, in the
# sandbox of a worker. The second process is in the place of the threads of the kernel.
LIMITS_GROUP = "/sys/fs/cgroup/zfsilo.slice/zfsilo-limits.service"
KEEP_GROUP = f"""
set -e
mkdir {LIMITS_GROUP}/keeper {LIMITS_GROUP}/volumes
cat {LIMITS_GROUP}/cgroup.procs > {LIMITS_GROUP}/keeper/cgroup.procs
echo $1 > {LIMITS_GROUP}/volumes/cgroup.procs
"""
OPERATION = (
    "systemd-run --collect --wait --unit=zfsilo-op-x.service -p Type=oneshot -p Slice=zfsilo.slice"
    " -p OnFailure=zfsilo-rollback@x.service {dependencies} sh -c '>/var/lib/ran; exit 1'"
)


@pytest.fixture(scope="module")
def host() -> Iterator[SystemdHost]:
    """A bare machine."""
    with SystemdHost() as machine:
        yield machine


def _install_template(host: SystemdHost, dependencies: str = "") -> None:
    unit = ROLLBACK.format(dependencies=dependencies)
    host.write("/etc/systemd/system/zfsilo-rollback@.service", unit)
    host.run("systemctl", "daemon-reload")


def _run_unit(host: SystemdHost, *argv: str) -> str:
    return host.run("systemd-run", "--wait", "--collect", "--quiet", "--pipe", *argv).stdout


def test_the_bus_answers(host: SystemdHost) -> None:
    call = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
    answer = host.run("busctl", "get-property", *call, f"{call[0]}.Manager", "Version")
    assert answer.stdout.startswith('s "')


def test_a_transient_unit_runs_and_logs(host: SystemdHost) -> None:
    fields = ("-p", "LogExtraFields=ZFSILO_VOLUME=data")
    host.run("systemd-run", "--wait", "--collect", "--unit=speaks", *fields, "echo", "hello")
    assert "hello" in host.journal("speaks")
    chosen = host.run("journalctl", "-o", "cat", "ZFSILO_VOLUME=data", "_TRANSPORT=stdout")
    assert chosen.stdout == "hello\n"


@pytest.mark.parametrize(
    ("command", "result"),
    [
        (("sh", "-c", "exit 1"), "exit-code"),
        (("sh", "-c", "kill -9 $$$$"), "signal"),
        (("-pTimeoutStartSec=0.1", "sleep", "60"), "timeout"),
        (("true",), None),
    ],
)
def test_on_failure_of_a_oneshot_starts_the_template(
    host: SystemdHost, command: tuple[str, ...], result: str | None
) -> None:
    _install_template(host)
    host.run("rm", "-f", "/var/lib/rolled-back-x")
    unit = ("--unit=zfsilo-op-x.service", "-pType=oneshot", "-pOnFailure=zfsilo-rollback@x.service")
    host.run("systemd-run", "--wait", "--collect", *unit, *command, check=False)
    deadline = time.monotonic() + 2
    while not host.exists("/var/lib/rolled-back-x") and time.monotonic() < deadline and result:
        time.sleep(0.02)
    expected = f"zfsilo-op-x.service {result}\n" if result else ""
    assert host.run("cat", "/var/lib/rolled-back-x", check=False).stdout == expected


def test_load_credential(host: SystemdHost) -> None:
    host.write("/etc/secret", "a key", mode=0o600)
    show = 'cat "$CREDENTIALS_DIRECTORY/key"'
    assert _run_unit(host, "-pLoadCredential=key:/etc/secret", "sh", "-c", show) == "a key"


def test_a_service_can_mount_for_the_machine(host: SystemdHost) -> None:
    _run_unit(host, "mount", "-t", "tmpfs", "none", "/mnt")
    assert host.run("mountpoint", "/mnt", check=False).rc == 0
    host.run("umount", "/mnt")
    _run_unit(host, "-pPrivateMounts=yes", "mount", "-t", "tmpfs", "none", "/mnt")
    assert host.run("mountpoint", "/mnt", check=False).rc != 0


def test_polkit_answers(host: SystemdHost) -> None:
    ask = "pkcheck --action-id org.freedesktop.systemd1.manage-units --process $$"
    assert host.run("sh", "-c", ask).rc == 0
    refused = host.run("sh", "-c", f"{ask}; exit $?", uid=65534, check=False)
    assert refused.rc != 0
    assert "requires authentication" in refused.stderr
    stop = host.run("systemctl", "--no-ask-password", "stop", "dbus", uid=65534, check=False)
    assert "interactive authentication required" in stop.stderr.lower()


def test_polkit_binds_a_user_to_the_units_of_a_template(host: SystemdHost) -> None:
    """A transient unit is refused, under the name of an instance too: its properties are free."""
    host.write("/etc/systemd/system/zfsilo-pool@.service", TEMPLATE)
    host.write("/etc/polkit-1/rules.d/50-zfsilo-test.rules", RULE)
    host.run("systemctl", "restart", "polkit.service")  # by itself it may read half of the file
    host.run("systemctl", "daemon-reload")
    unit = f"zfsilo-pool@{'0' * 26}.service"
    start = ("systemctl", "--no-ask-password", "start")
    host.run(*start, unit, uid=65534)
    assert host.read(f"/var/lib/started-{'0' * 26}") == "0\n"
    transient = ("systemd-run", "--no-ask-password", "--collect")
    for argv in (
        (*transient, "touch", "/var/lib/evil"),
        (*transient, f"--unit={unit}", "touch", "/var/lib/evil"),
        (*transient, f"--unit=zfsilo-target@{'1' * 26}.service", "touch", "/var/lib/evil"),
        (*start, "zfsilo-pool@short.service"),
        (*start, f"zfsilo-mounts@{'0' * 26}.service"),
        ("systemctl", "--no-ask-password", "stop", unit),
        ("systemctl", "--no-ask-password", "set-property", unit, "CPUWeight=1"),
        ("systemctl", "--no-ask-password", "daemon-reload"),
    ):
        refused = host.run(*argv, uid=65534, check=False)
        assert refused.rc != 0, argv
        assert "interactive authentication required" in refused.stderr.lower(), argv
    assert not host.exists("/var/lib/evil")


def test_a_sandboxed_service_sees_the_boot_id_of_the_kernel(host: SystemdHost) -> None:
    """Only %b is correct in every sandbox: a new /proc has the boot id of the host kernel."""
    boot_id = host.read(BOOT_ID).strip()
    assert _run_unit(host, "cat", BOOT_ID).strip() == boot_id
    assert _run_unit(host, "-pProtectProc=invisible", "cat", BOOT_ID).strip() != boot_id
    hidden = ("-pProcSubset=pid", "test", "-e", BOOT_ID)
    assert host.run("systemd-run", "--wait", "--collect", "-q", *hidden, check=False).rc != 0
    host.write("/etc/systemd/system/boot-id.service", BOOT_ID_UNIT)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "boot-id.service")
    assert f"id {boot_id.replace('-', '')}" in host.journal("boot-id")


@pytest.mark.parametrize(
    ("without_defaults", "ran", "rolled_back"),
    [
        (("unit", "slice", "template"), True, True),
        (("slice", "template"), False, False),
        (("unit", "template"), False, False),
        (("unit", "slice"), True, False),
        ((), False, False),
    ],
)
def test_on_failure_during_shutdown_needs_no_default_dependencies_anywhere(
    host: SystemdHost, without_defaults: tuple[str, ...], *, ran: bool, rolled_back: bool
) -> None:
    """A rollback runs during shutdown if unit, slice and template lack default dependencies."""
    off = dict.fromkeys(without_defaults, "DefaultDependencies=no")
    host.run("rm", "-f", "/var/lib/ran", "/var/lib/rolled-back-x")
    host.write("/etc/systemd/system/zfsilo.slice", f"[Unit]\n{off.get('slice', '')}\n")
    operation = OPERATION.format(dependencies=f"-p {off['unit']}" if "unit" in off else "")
    host.write("/etc/systemd/system/holder.service", HOLDER.format(operation=operation))
    _install_template(host, off.get("template", ""))
    host.run("systemctl", "start", "holder.service")
    host.reboot()
    assert host.exists("/var/lib/ran") == ran
    assert host.exists("/var/lib/rolled-back-x") == rolled_back


def test_a_unit_keeps_the_groups_below_its_own_while_it_has_a_process(host: SystemdHost) -> None:
    for name in ("zfsilo-limits.service", "zfsilo.slice"):
        host.write(f"/etc/systemd/system/{name}", (UNITS / name).read_text())
    host.run("mkdir", "-p", *OWN_PATHS)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "zfsilo-limits.service")
    other = host.run("systemctl", "show", "-P", "MainPID", "dbus.service").stdout.strip()
    home = host.run("cat", f"/proc/{other}/cgroup").stdout.rpartition("0::")[2].strip()
    for part in ("POOL", "TARGET"):
        sandbox = [
            word for name, value in settings((part,)).items() for word in ("-p", f"{name}={value}")
        ]
        words = (*sandbox, "sh", "-c", KEEP_GROUP, "sh", other)
        done = host.run("systemd-run", "--wait", "--collect", "-q", "--pipe", *words, check=False)
        refused = "" if part == "TARGET" else "Read-only file system"
        assert (done.rc == 0, refused in done.stderr) == (not refused, True), done.stderr
    assert host.run("cat", f"{LIMITS_GROUP}/volumes/cgroup.procs").stdout.split() == [other]
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "daemon-reexec")
    assert host.exists(f"{LIMITS_GROUP}/volumes")
    host.run("sh", "-c", f"echo {other} > /sys/fs/cgroup{home}/cgroup.procs")
    host.run("systemctl", "stop", "zfsilo-limits.service")
    assert not host.exists(LIMITS_GROUP)
