"""VolumeService: encrypted volumes, the rotation and the export of their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import DATA, create, publish, refused
from zfsilod.model.disk_key import CURRENT
from zfsilod.model.marks import SEALED_KEY

if TYPE_CHECKING:
    from tests.api.running import Front

EXPORT = pb.ExportVolumeKeyRequest(name=DATA)


async def test_an_encrypted_volume(front: Front) -> None:
    volumes = front.root().volumes
    volume = (await volumes.CreateVolume(create(encrypted=True))).volume
    assert volume.encrypted
    assert (volume.key.volume_uid, volume.key.rotation) == (volume.uid, 0)
    assert not volume.key.HasField("export_time")
    await volumes.PublishVolume(publish())
    rotated = (await volumes.RotateVolumeKey(pb.RotateVolumeKeyRequest(name=DATA))).volume
    assert (rotated.key.rotation, rotated.state) == (1, pb.STATE_PUBLISHED)
    plain = (await volumes.CreateVolume(create("plain"))).volume
    assert (plain.encrypted, plain.HasField("key")) == (False, False)
    with refused("FAILED_PRECONDITION", "NOT_ENCRYPTED"):
        await volumes.RotateVolumeKey(pb.RotateVolumeKeyRequest(name="volumes/plain"))


async def test_a_key_is_exported_once_and_recorded(front: Front) -> None:
    volumes = front.root().volumes
    volume = (await volumes.CreateVolume(create(encrypted=True))).volume
    recorded: list[dict[str, str]] = []
    front.service.audit.write = lambda _sentence, fields: recorded.append(fields)
    await volumes.ExportVolumeKey(pb.ExportVolumeKeyRequest(name=DATA, validate_only=True))
    assert recorded == []
    exported = await volumes.ExportVolumeKey(EXPORT)
    kept = front.service.context.store.disk_key(volume.uid, CURRENT)
    assert (exported.dataset, exported.recovery_key) == (volume.dataset, kept.reveal().hex())
    with refused("FAILED_PRECONDITION", "KEY_EXPORTED"):
        await volumes.ExportVolumeKey(EXPORT)
    assert (await volumes.GetVolume(pb.GetVolumeRequest(name=DATA))).key.export_time.seconds
    first, second = recorded
    assert (first["ZFSILO_ACTION"], first["ZFSILO_SUBJECT"]) == ("ExportVolumeKey", DATA)
    assert (first["ZFSILO_OUTCOME"], second["ZFSILO_REASON"]) == ("DONE", "KEY_EXPORTED")
    assert exported.recovery_key not in str(recorded)


async def test_a_key_that_the_zvol_does_not_carry_is_not_exported(front: Front) -> None:
    """It may not open the volume: the store, or the pool, is of another time."""
    volumes = front.root().volumes
    await volumes.CreateVolume(create(encrypted=True))
    store, zfs = front.service.context.store, front.service.context.machine.zfs
    zfs.set_property("tank/zfsilo/data", SEALED_KEY, "1:b3RoZXI=")
    with refused("FAILED_PRECONDITION", "KEY_MISMATCH"):
        await volumes.ExportVolumeKey(EXPORT)
    await volumes.RotateVolumeKey(pb.RotateVolumeKeyRequest(name=DATA))
    with store.write() as txn:
        txn.put_raw("claim", DATA.replace("volumes", "volume"), b"01m8nse1c9w69htv248vqys690")
    with refused("ABORTED", "CLAIMED"):
        await volumes.ExportVolumeKey(EXPORT)
    with store.write() as txn:
        txn.drop("claim", DATA.replace("volumes", "volume"))
    assert (await volumes.ExportVolumeKey(EXPORT)).recovery_key


async def test_a_key_leaves_the_server_by_no_network(front: Front) -> None:
    await front.root().volumes.CreateVolume(create(encrypted=True))
    with refused("PERMISSION_DENIED", "LOCAL"):
        await front.role("admin", "ops").volumes.ExportVolumeKey(EXPORT)
    for role in ("controller", "reader", "host"):
        with refused("PERMISSION_DENIED", "ROLE"):
            await front.role(role, "take").volumes.ExportVolumeKey(EXPORT)


async def test_a_clone_names_the_volume_with_its_key(front: Front) -> None:
    volumes = front.root().volumes
    origin = (await volumes.CreateVolume(create(encrypted=True))).volume
    clone = (await volumes.CreateVolume(create("copy", source={"volume": DATA}))).volume
    assert (clone.encrypted, clone.key.volume_uid) == (True, origin.uid)
    with refused("FAILED_PRECONDITION", "KEY_OF_ORIGIN"):
        await volumes.ExportVolumeKey(pb.ExportVolumeKeyRequest(name="volumes/copy"))
