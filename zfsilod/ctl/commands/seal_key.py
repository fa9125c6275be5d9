"""`zfsiloctl seal-key`: lets systemd keep the key of the store, as a credential.

systemd-creds(1) seals it with the TPM of the host if there is one, else with the host key of
systemd. The key in the file is removed only when the daemon runs with the sealed one, and no worker
does that started without it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.ctl import paths
from zfsilod.ctl.confirm import confirmed
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.require_local import check_real
from zfsilod.host.run import Runner
from zfsilod.model.errors import Busy, FailedPrecondition, PermissionDenied
from zfsilod.storage.secrets import CREDENTIAL, load_key

if TYPE_CHECKING:
    from argparse import Namespace

FOLDER = Path("/etc/credstore.encrypted")
TOOL_S = 60.0
PASSED = Path("/run/credentials")  # by unit
DAEMON = "zfsilod.service"
WORKERS = ("zfsilo-op-*.service", "zfsilo-rollback@*.service")
RUNNING = ("activating", "active", "deactivating")
UNIT_S = 240.0


def seal_key(args: Namespace) -> int:
    """Seal the key of the store, after confirmation."""
    check_real(args, "seal-key")
    if os.geteuid() != 0:
        raise PermissionDenied("seal-key needs root; use sudo", reason="NOT_ROOT")
    file, sealed = paths.state() / "key", FOLDER / CREDENTIAL
    if sealed.exists() and not file.exists():
        print(f"the key of the store is sealed in {sealed} already")
        return 0
    print(f"seals the key of the store in {sealed}, restarts zfsilod.service, removes {file}")
    print("  Another machine, or another TPM, cannot open it: without it no secret can be read.")
    if args.dry_run:
        return 0
    if not args.yes and not confirmed("Continue?", default=True):
        return FAILED
    seal(Runner(), file, sealed)
    return 0


def seal(run: Runner, file: Path, sealed: Path) -> None:
    """Seal a key, restart the daemon with it, and remove the file. It can be repeated."""
    if not file.exists():
        run(["systemctl", "start", DAEMON], timeout_s=UNIT_S)  # it makes the key of a new store
    if not file.exists():
        raise FailedPrecondition(
            f"{file} does not exist: {DAEMON} has another credential {CREDENTIAL}, or the key was "
            "lost and has to be restored from a backup",
            reason="NO_KEY_FILE",
        )
    key = load_key(file)
    sealed.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not sealed.exists():
        encrypt = ["systemd-creds", "encrypt", f"--name={CREDENTIAL}", str(file), str(sealed)]
        run(encrypt, timeout_s=TOOL_S)
    decrypt = ["systemd-creds", "decrypt", f"--name={CREDENTIAL}", "--transcode=hex", str(sealed)]
    if bytes.fromhex(run([*decrypt, "-"], timeout_s=TOOL_S).stdout.strip()) != key:
        raise FailedPrecondition(
            f"{sealed} has another key than {file}: remove the one that is not of this store",
            reason="OTHER_KEY",
        )
    run(["systemctl", "restart", DAEMON], timeout_s=UNIT_S)
    _check_used(key)
    _check_no_older_worker(run)
    _overwrite(file, len(key))


def _check_used(key: bytes) -> None:
    """Raise FailedPrecondition unless systemd passed this key to the daemon: systemd.exec(5)."""
    passed = PASSED / DAEMON / CREDENTIAL
    if not passed.exists() or passed.read_bytes() != key:
        raise FailedPrecondition(
            f"{DAEMON} does not run with the sealed key: see systemctl cat {DAEMON}",
            reason="OTHER_KEY",
        )


def _check_no_older_worker(run: Runner) -> None:
    """Raise Busy while an operation runs that started before the daemon: it may need the file."""
    show = ["systemctl", "show", "--property=Id,ActiveState,InactiveExitTimestampMonotonic"]
    shown = run([*show, DAEMON, *WORKERS], timeout_s=TOOL_S).stdout
    units = [dict(line.split("=", 1) for line in unit.splitlines()) for unit in shown.split("\n\n")]
    began = {unit["Id"]: int(unit["InactiveExitTimestampMonotonic"]) for unit in units}
    running = [unit["Id"] for unit in units if unit["ActiveState"] in RUNNING]
    older = [name for name in running if began[name] < began[DAEMON]]
    if older:
        raise Busy(
            f"{', '.join(older)} may still need the file: run zfsiloctl seal-key again when it has "
            "ended",
            reason="CLAIMED",
        )


def _overwrite(file: Path, size: int) -> None:
    """Overwrite a file and remove it; a filesystem that copies on write may keep the old block."""
    with file.open("r+b") as handle:
        handle.write(bytes(size))
        handle.flush()
        os.fsync(handle.fileno())
    file.unlink()
