"""The CSI socket: the role node changes its own attachments only, below its own paths."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from zfsilo.v1 import service_pb2
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import connect as connect_any
from tests.api.running import create, front_of, refused
from tests.api.running import publish as publish_any
from tests.service_fixture import SETTINGS
from zfsilod.model.errors import PermissionDenied
from zfsilod.requests.paths import real_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api.running import Front
    from zfsilod.wire.stub import Api

OUTSIDE = "/srv/data"
DATA = "volumes/csi-data"


def connect(**fields: Any) -> pb.ConnectVolumeRequest:
    """Return a request to connect volume csi-data of server give."""
    return connect_any(**({"volume": "csi-data"} | fields))


def attach(**fields: Any) -> pb.AttachVolumeRequest:
    """Return a request to attach volume csi-data of server give."""
    return pb.AttachVolumeRequest(server="give", volume="csi-data", **fields)


def publish(**fields: Any) -> pb.PublishVolumeRequest:
    """Return a request to publish volume csi-data to host take."""
    return publish_any(**({"name": DATA} | fields))


class Kubelet:
    """A daemon with a volume of a controller, the path that its node may use, and both sockets."""

    def __init__(self, front: Front, below: str) -> None:
        self.below = below
        self.root: Api = front.root()
        self.node: Api = front.node()
        self.host: Api = front.role("host", "take")
        self.controller: Api = front.role("controller", "csi")

    def path(self, name: str) -> str:
        return f"{self.below}/{name}"


@asynccontextmanager
async def kubelet_of(directory: Path) -> AsyncIterator[Kubelet]:
    below = directory / "kubelet"
    below.mkdir()
    settings = SETTINGS.but(node_paths=(str(below),))
    async with front_of(directory, settings) as front:
        built = Kubelet(front, str(below))
        await built.root.volumes.CreateVolume(create("csi-data"))
        await built.controller.volumes.PublishVolume(publish())
        yield built


async def test_a_node_attaches_and_detaches_below_its_path(tmp_path: Path) -> None:
    async with kubelet_of(tmp_path) as at:
        volumes = at.node.volumes
        await volumes.ConnectVolume(connect())
        await volumes.StageVolume(pb.StageVolumeRequest(name=DATA, path=at.path("stage")))
        mounted = await volumes.MountVolume(
            pb.MountVolumeRequest(name=DATA, path=at.path("pods/a/mount"))
        )
        assert mounted.volume.state == pb.STATE_MOUNTED
        assert not mounted.volume.publications
        seen = await volumes.GetVolume(pb.GetVolumeRequest(name=DATA))
        assert seen.attachment.mounts[0].path == at.path("pods/a/mount")
        await volumes.StatsVolume(pb.StatsVolumeRequest(name=DATA))
        await volumes.GrowVolume(pb.GrowVolumeRequest(name=DATA))
        await volumes.UnmountVolume(pb.UnmountVolumeRequest(name=DATA, all_paths=True))
        await volumes.UnstageVolume(pb.UnstageVolumeRequest(name=DATA))
        await volumes.DisconnectVolume(pb.DisconnectVolumeRequest(name=DATA))
        with refused("NOT_FOUND"):
            await volumes.GetVolume(pb.GetVolumeRequest(name=DATA))


async def test_root_has_the_role_node_on_the_csi_socket(tmp_path: Path) -> None:
    async with kubelet_of(tmp_path) as at:
        info = await at.node.service.GetServerInfo(service_pb2.GetServerInfoRequest())
        assert info.caller == "node uid 0 (csi socket)"
        with refused("PERMISSION_DENIED", "ROLE"):
            await at.node.volumes.FetchConnection(pb.FetchConnectionRequest(name=DATA))
        with refused("PERMISSION_DENIED", "ROLE"):
            await at.node.volumes.ListVolumes(pb.ListVolumesRequest())


@pytest.mark.parametrize(
    "fields", [{"restore": pb.RESTORE_BOOT}, {"publish_if_needed": True}], ids=str
)
async def test_a_node_cannot_publish_or_restore_at_boot(tmp_path: Path, fields: Any) -> None:
    async with kubelet_of(tmp_path) as at:
        with refused("PERMISSION_DENIED", "NOT_THE_NODES"):
            await at.node.volumes.ConnectVolume(connect(**fields))


@pytest.mark.parametrize("path", ["", OUTSIDE, "{}", "{}-more/x", "{}/../x", "relative"])
async def test_paths_outside_are_refused(tmp_path: Path, path: str) -> None:
    async with kubelet_of(tmp_path) as at:
        volumes = at.node.volumes
        await volumes.ConnectVolume(connect())
        wrong = path.format(at.below)
        code = "INVALID_ARGUMENT" if ".." in wrong or wrong == "relative" else "PERMISSION_DENIED"
        with refused(code):
            await volumes.StageVolume(pb.StageVolumeRequest(name=DATA, path=wrong))
        await volumes.StageVolume(pb.StageVolumeRequest(name=DATA, path=at.path("stage")))
        with refused(code):
            await volumes.MountVolume(pb.MountVolumeRequest(name=DATA, path=wrong))


def test_links_to_the_outside_are_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "kubelet", tmp_path / "etc"
    inside.mkdir()
    outside.mkdir()
    allowed = (str(inside),)
    (inside / "out").symlink_to(outside)
    (inside / "in").symlink_to(inside / "pods")
    (inside / "round").symlink_to(inside / "round")
    for path in ("pods/a/mount", "in/a", "not/there/yet"):
        real_path(f"{inside}/{path}", allowed)
    for path in ("out/a", "out/a/b", "round/a"):
        with pytest.raises(PermissionDenied):
            real_path(f"{inside}/{path}", allowed)
    (tmp_path / "linked").symlink_to(inside)  # as /var/lib/kubelet often is
    real_path(f"{tmp_path}/linked/pods/a", (f"{tmp_path}/linked",))


@pytest.mark.parametrize("target", ["usr/lib/units", "usr", "usr/../usr/lib"])
async def test_a_link_to_a_folder_that_does_not_exist_is_refused(
    tmp_path: Path, target: str
) -> None:
    """The worker would make the folder, and a unit in the volume would run as root."""
    async with kubelet_of(tmp_path) as at:
        volumes = at.node.volumes
        await volumes.ConnectVolume(connect())
        (tmp_path / "kubelet/evil").symlink_to(tmp_path / target)
        path = at.path("evil/system")
        with refused("PERMISSION_DENIED", "PATH_NOT_ALLOWED"):
            await volumes.StageVolume(pb.StageVolumeRequest(name=DATA, path=path))
        await volumes.StageVolume(pb.StageVolumeRequest(name=DATA, path=at.path("stage")))
        with refused("PERMISSION_DENIED", "PATH_NOT_ALLOWED"):
            await volumes.MountVolume(pb.MountVolumeRequest(name=DATA, path=path))
        with refused("PERMISSION_DENIED", "PATH_NOT_ALLOWED"):
            await volumes.MountVolume(
                pb.MountVolumeRequest(name=DATA, path=path, validate_only=True)
            )


async def test_the_folder_of_a_node_may_be_a_link(tmp_path: Path) -> None:
    """The paths are recorded without links; every method finds them by either name."""
    (tmp_path / "disk").mkdir()
    linked, real = tmp_path / "linked", tmp_path / "disk"
    linked.symlink_to(real)
    async with front_of(tmp_path, SETTINGS.but(node_paths=(str(linked),))) as front:
        root, volumes = front.root().volumes, front.node().volumes
        await root.CreateVolume(create("csi-data"))
        await root.PublishVolume(publish(for_csi=True))
        await volumes.ConnectVolume(connect())
        stage = pb.StageVolumeRequest(name=DATA, path=f"{linked}/stage")
        mount = pb.MountVolumeRequest(name=DATA, path=f"{linked}/pods/a")
        for _repeat in range(2):
            await volumes.StageVolume(stage)
            mounted = await volumes.MountVolume(mount)
        assert mounted.volume.attachment.staging_path == f"{real}/stage"
        assert [one.path for one in mounted.volume.attachment.mounts] == [f"{real}/pods/a"]
        left = await volumes.UnmountVolume(
            pb.UnmountVolumeRequest(name=DATA, path=f"{linked}/pods/a")
        )
        assert not left.volume.attachment.mounts
        await volumes.UnstageVolume(pb.UnstageVolumeRequest(name=DATA, path=f"{linked}/stage"))


async def test_a_link_of_an_administrator_is_resolved_once(tmp_path: Path) -> None:
    """A second path that leads to the same folder is the same mount."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    async with kubelet_of(tmp_path) as at:
        volumes = at.root.volumes
        await volumes.ConnectVolume(connect())
        await volumes.StageVolume(pb.StageVolumeRequest(name=DATA))
        for name in ("link", "real", "link/."):
            path = f"{tmp_path}/{name}/data/"
            mounted = await volumes.MountVolume(pb.MountVolumeRequest(name=DATA, path=path))
            paths = [mount.path for mount in mounted.volume.attachment.mounts]
            assert paths == [f"{tmp_path}/real/data"]
        for path in ("/proc/x", "/sys/x", "/var/lib/zfsilo/x"):
            with refused("INVALID_ARGUMENT", "BAD_PATH"):
                await volumes.MountVolume(pb.MountVolumeRequest(name=DATA, path=path))


@pytest.mark.parametrize("why", ["restore", "path", "owner"])
async def test_attachments_of_an_administrator_are_refused(tmp_path: Path, why: str) -> None:
    async with kubelet_of(tmp_path) as at:
        restore = pb.RESTORE_BOOT if why == "restore" else pb.RESTORE_NEVER
        connecting = at.node if why == "path" else at.root
        await connecting.volumes.ConnectVolume(connect())
        await at.root.volumes.ConnectVolume(connect(restore=restore))
        path = OUTSIDE if why == "path" else at.path("stage")
        await at.root.volumes.StageVolume(pb.StageVolumeRequest(name=DATA, path=path))
        volumes = at.node.volumes
        with refused("NOT_FOUND"):
            await volumes.GetVolume(pb.GetVolumeRequest(name=DATA))
        with refused("NOT_FOUND"):
            await volumes.StatsVolume(pb.StatsVolumeRequest(name=DATA))
        for method, request in (
            (volumes.AttachVolume, attach(staging_path=at.path("x"), path=at.path("y"))),
            (volumes.ConnectVolume, connect()),
            (volumes.MountVolume, pb.MountVolumeRequest(name=DATA, path=at.path("x"))),
            (volumes.UnmountVolume, pb.UnmountVolumeRequest(name=DATA, all_paths=True)),
            (volumes.UnstageVolume, pb.UnstageVolumeRequest(name=DATA)),
            (volumes.DisconnectVolume, pb.DisconnectVolumeRequest(name=DATA)),
            (volumes.GrowVolume, pb.GrowVolumeRequest(name=DATA)),
        ):
            with refused("PERMISSION_DENIED", "NOT_THE_NODES"):
                await method(request)


async def test_a_node_uses_its_own_names_only(tmp_path: Path) -> None:
    async with kubelet_of(tmp_path) as at:
        other = "volumes/data"
        for name in ("data", "csi", "Csi-data", "xcsi-data"):
            code = "INVALID_ARGUMENT" if name == "Csi-data" else "PERMISSION_DENIED"
            with refused(code):
                await at.node.volumes.ConnectVolume(connect(local_name=name))
        await at.root.volumes.ConnectVolume(connect(local_name="data"))
        volumes = at.node.volumes
        with refused("ALREADY_EXISTS"):
            await volumes.ConnectVolume(connect())
        for method, request in (
            (volumes.StageVolume, pb.StageVolumeRequest(name=other, path=at.path("x"))),
            (volumes.MountVolume, pb.MountVolumeRequest(name=other, path=at.path("x"))),
            (volumes.UnmountVolume, pb.UnmountVolumeRequest(name=other, all_paths=True)),
            (volumes.UnstageVolume, pb.UnstageVolumeRequest(name=other, force=True)),
            (volumes.DisconnectVolume, pb.DisconnectVolumeRequest(name=other, force=True)),
            (volumes.GrowVolume, pb.GrowVolumeRequest(name=other)),
        ):
            with refused("PERMISSION_DENIED", "NOT_THE_NODES"):
                await method(request)


async def test_a_node_connects_only_what_a_controller_published(tmp_path: Path) -> None:
    async with kubelet_of(tmp_path) as at:
        await at.root.volumes.CreateVolume(create())
        await at.root.volumes.PublishVolume(publish(name="volumes/data"))
        squat = connect(volume="data", local_name="csi-mine")
        for volume in ("data", "csi-more"):
            if volume == "csi-more":
                await at.root.volumes.CreateVolume(create(volume))
                mine = publish(name=f"volumes/{volume}")
                with refused("PERMISSION_DENIED", "ROLE"):
                    await at.host.volumes.PublishVolume(publish(name=mine.name, for_csi=True))
                await at.host.volumes.PublishVolume(mine)
            with refused("PERMISSION_DENIED", "NOT_BY_CONTROLLER"):
                await at.node.volumes.ConnectVolume(connect(volume=volume, local_name="csi-mine"))
        await at.root.volumes.PublishVolume(publish(name="volumes/data", for_csi=True))
        await at.node.volumes.ConnectVolume(squat)
        await at.root.volumes.PublishVolume(publish(name="volumes/data"))
        await at.node.volumes.ConnectVolume(squat)


async def test_remote_callers_cannot_attach(tmp_path: Path) -> None:
    async with front_of(tmp_path) as front:
        far = front.role("admin", "ops").volumes
        await far.CreateVolume(create("csi-data"))
        await far.PublishVolume(publish())
        for method, request in (
            (far.AttachVolume, attach(path=OUTSIDE)),
            (far.ConnectVolume, connect()),
            (far.StageVolume, pb.StageVolumeRequest(name=DATA)),
            (far.MountVolume, pb.MountVolumeRequest(name=DATA, path=OUTSIDE)),
        ):
            with refused("PERMISSION_DENIED", "LOCAL"):
                await method(request)
        await front.root().volumes.ConnectVolume(connect())
        await far.DisconnectVolume(pb.DisconnectVolumeRequest(name=DATA))
