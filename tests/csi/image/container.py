"""A container of the plugin's pods, started by crun as a container runtime does for kubelet."""

from __future__ import annotations

import json
import subprocess
import tarfile
import time
import uuid
from typing import TYPE_CHECKING, Any

from tests.setup import image
from tests.setup.command import run as command

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# crun sees no cgroups, so that it cannot change those of this machine.
HIDDEN = ["unshare", "--mount", "sh", "-euc", 'mount -t tmpfs none /sys/fs/cgroup; exec "$@"', "sh"]
CRUN = [*HIDDEN, "crun", "--cgroup-manager=disabled"]
# The mounts vanish with the container. As for a pod, the root is an overlay over the image, since
# the points of the mounts are made in it.
OVERLAY = """
cd "$1"
config=$(cat config.json)
mount -t tmpfs none "$1"
cd "$1"
mkdir upper work root
mount -t overlay -o "lowerdir=$2,upperdir=upper,workdir=work" none root
printf '%s' "$config" > config.json
shift 2
exec "$@"
"""
START_S = 60
TAIL = 3000
# As containerd mounts them, without the host's cgroups.
SYSTEM_MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
]
NAMESPACES = ("pid", "ipc", "uts", "mount")  # the network is that of the test, not of a pod


class PodContainer:
    """The container `plugin` of a pod; `volumes` are the folders of the pod's volumes."""

    def __init__(self, pod: dict[str, Any], volumes: Mapping[str, Path], folder: Path) -> None:
        self._name = f"zfsilo-{uuid.uuid4().hex[:12]}"
        self._bundle = folder / "bundle"
        self._bundle.mkdir()
        self.log = folder / "container.log"
        self._image = image.prepare()
        spec = runtime_spec(pod, image_config(self._image / image.ARCHIVE), volumes)
        (self._bundle / "config.json").write_text(json.dumps(spec))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, socket: Path) -> None:
        """Start the container, and wait until the plugin's socket exists."""
        bundle = str(self._bundle)
        overlay = ["sh", "-euc", OVERLAY, "sh", bundle, str(self._image / image.ROOT)]
        crun = ["crun", "--cgroup-manager=disabled", "run", "--bundle", bundle, self._name]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*HIDDEN, *overlay, *crun],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not socket.exists():
            assert self._process.poll() is None, self.tail()
            assert time.monotonic() < deadline, self.tail()
            time.sleep(0.05)  # there is no event for a socket that another process binds

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as its user."""
        inside = [*CRUN, "exec", self._name, *words]
        return subprocess.run(inside, capture_output=True, text=True, check=False)

    def end(self) -> int:
        """End the container as kubelet does, and return its exit code."""
        assert self._process is not None
        try:
            if self._process.poll() is None:
                command([*CRUN, "kill", self._name, "TERM"])
            return self._process.wait(START_S)
        finally:
            if self._process.poll() is None:
                subprocess.run([*CRUN, "delete", "--force", self._name], check=False)
                self._process.kill()

    def tail(self) -> str:
        """The end of the output."""
        return self.log.read_text(errors="replace")[-TAIL:]


def image_config(archive: Path) -> dict[str, Any]:
    """The section `config` of the image in an OCI archive."""
    with tarfile.open(archive) as opened:
        index = _member(opened, "index.json")
        manifest = _member(opened, _blob(index["manifests"][0]))
        config: dict[str, Any] = _member(opened, _blob(manifest["config"]))["config"]
    return config


def _blob(descriptor: dict[str, Any]) -> str:
    return "blobs/" + str(descriptor["digest"]).replace(":", "/")


def _member(archive: tarfile.TarFile, name: str) -> Any:
    content = archive.extractfile(name)
    assert content is not None, f"{name} is not a file"
    return json.load(content)


def runtime_spec(
    pod: dict[str, Any], config: dict[str, Any], volumes: Mapping[str, Path]
) -> dict[str, Any]:
    """The configuration of the OCI runtime for the container `plugin` of a pod."""
    container = next(one for one in pod["containers"] if one["name"] == "plugin")
    confined, user = container["securityContext"], pod["securityContext"]
    assert confined["capabilities"] == {"drop": ["ALL"]}
    assert not confined["privileged"]
    groups = [user["fsGroup"]] if "fsGroup" in user else []
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {
                "uid": user["runAsUser"],
                "gid": user["runAsGroup"],
                "additionalGids": groups,
            },
            "args": [*config["Entrypoint"], *container["args"]],
            "env": config["Env"],
            "cwd": config.get("WorkingDir") or "/",
            "capabilities": {},
            "noNewPrivileges": not confined["allowPrivilegeEscalation"],
        },
        "root": {"path": image.ROOT, "readonly": confined["readOnlyRootFilesystem"]},
        "mounts": [*SYSTEM_MOUNTS, *_mounts(container, volumes)],
        "linux": {"namespaces": [{"type": kind} for kind in NAMESPACES]},
    }


def _mounts(container: dict[str, Any], volumes: Mapping[str, Path]) -> list[dict[str, Any]]:
    return [
        {
            "destination": mount["mountPath"],
            "type": "bind",
            "source": str(volumes[mount["name"]]),
            "options": ["rbind", "rprivate", "ro" if mount.get("readOnly") else "rw"],
        }
        for mount in container["volumeMounts"]
    ]
