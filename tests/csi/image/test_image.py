"""The image, started as the pods of the chart start it, with a simulated zfsilod behind it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
import zfsilo_csi
from csi.v1 import csi_pb2 as csi

from tests.csi.image.container import PodContainer, image_config
from tests.csi.plugin_client import PluginClient
from tests.csi.suite.test_deploy import object_of, pods
from tests.kubernetes.control_plane import free_address
from tests.kubernetes.storage import PoolHost
from tests.setup import image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SERVER = "give"
KINDS = {"controller": "Deployment", "node": "DaemonSet"}
EMPTY = 0o2777  # kubelet's mode of an emptyDir with a group
SECRET = 0o440  # defaultMode of the chart
UNTOUCHED = re.compile(r"^(Uid|Gid|Groups|Cap\w+|NoNewPrivs):\s*(.*?)\s*$", re.M)
NO_CAPABILITY = "0" * 16


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, since the paths of sockets are limited."""
    path = Path(tempfile.mkdtemp(prefix="zfsilo-pod-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(folder: Path) -> Iterator[PoolHost]:
    """A zfsilod that is the server of the controller, and the host of the node."""
    (folder / "logs").mkdir()
    (folder / "disks").mkdir()
    host = PoolHost(folder, SERVER, folder / "disks", "default")
    host.start()
    host.admit()
    yield host
    host.process.end()


def volumes(folder: Path, server: PoolHost, role: str) -> dict[str, Path]:
    """The folders of a pod's volumes, as kubelet makes them; the key is the name of the volume."""
    config = folder / "config"
    (config / "backends").mkdir(parents=True)  # kubelet makes the mount points of nested volumes
    text = object_of("ConfigMap")["data"]["config.toml"]
    assert '":9809"' in text
    # The test has no network of its own, where the port would be free.
    (config / "config.toml").write_text(text.replace('":9809"', f'"{free_address()}"'))
    socket = folder / "socket"
    socket.mkdir()
    if role == "node":
        return {"config": config, "plugin": socket, "zfsilod": server.folder / "run/csi"}
    group = pods()["Deployment"]["securityContext"]["fsGroup"]
    os.chown(socket, 0, group)
    socket.chmod(EMPTY)
    secret = folder / "secret"
    secret.mkdir()
    shutil.copy(server.join, secret)
    os.chown(secret / server.join.name, 0, group)
    (secret / server.join.name).chmod(SECRET)
    return {"config": config, "socket": socket, "backends": secret}


@asynccontextmanager
async def running(
    role: str, server: PoolHost, folder: Path
) -> AsyncIterator[tuple[PodContainer, PluginClient]]:
    """The container of a role, and a client of its socket; it ends by SIGTERM, without an error."""
    folders = volumes(folder, server, role)
    container = PodContainer(pods()[KINDS[role]], folders, folder)
    socket = folders.get("socket", folders.get("plugin", folder)) / "csi.sock"
    try:
        container.start(socket)
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            yield container, PluginClient(folder, channel)
    finally:
        code = container.end()
    assert code == 0, container.tail()


@pytest.mark.parametrize("role", KINDS)
async def test_a_pod_of_the_chart_answers(role: str, server: PoolHost, folder: Path) -> None:
    async with running(role, server, folder) as (container, plugin):
        probe = await plugin.identity.Probe(csi.ProbeRequest())
        assert probe.ready.value, f"zfsilod does not reply to the plugin:\n{container.tail()}"
        info = await plugin.identity.GetPluginInfo(csi.GetPluginInfoRequest())
        assert (info.name, info.vendor_version) == ("csi.zfsilo.io", zfsilo_csi.__version__)
        assert "Traceback" not in container.tail()


async def test_the_controller_creates_a_volume(server: PoolHost, folder: Path) -> None:
    async with running("controller", server, folder) as (_container, plugin):
        volume = await plugin.create("pvc-image")
        assert server.volumes() == [volume.volume_id.partition("/")[2]]
        await plugin.delete(volume.volume_id)
        assert server.volumes() == []


async def test_the_node_knows_its_name(server: PoolHost, folder: Path) -> None:
    async with running("node", server, folder) as (_container, plugin):
        info = await plugin.node.NodeGetInfo(csi.NodeGetInfoRequest())
        assert info.node_id == SERVER


@pytest.mark.parametrize("role", KINDS)
async def test_a_pod_can_change_nothing(role: str, server: PoolHost, folder: Path) -> None:
    user = pods()[KINDS[role]]["securityContext"]
    async with running(role, server, folder) as (container, _plugin):
        status = dict(UNTOUCHED.findall(container.run("cat", "/proc/1/status").stdout))
        assert set(status["Uid"].split()) == {str(user["runAsUser"])}
        assert set(status["Gid"].split()) == {str(user["runAsGroup"])}
        assert {value for name, value in status.items() if name.startswith("Cap")} == {
            NO_CAPABILITY
        }
        assert status["NoNewPrivs"] == "1"
        for path in ("/app/file", "/etc/zfsilo-csi/file", "/file"):
            done = container.run("touch", path)
            assert done.returncode != 0
            assert re.search("Read-only file system|Permission denied", done.stderr), done.stderr


def test_the_image_contains_the_plugin_only() -> None:
    built = image.prepare()
    packages = {path.name for path in (built / image.ROOT / "app").iterdir()}
    assert {"csi", "grpc", "zfsilo", "zfsilo_csi"} <= packages
    assert "zfsilod" not in packages
    config = image_config(built / image.ARCHIVE)
    user = pods()["Deployment"]["securityContext"]
    assert config["User"] == f"{user['runAsUser']}:{user['runAsGroup']}"
    assert config["Cmd"] == ["controller"]
