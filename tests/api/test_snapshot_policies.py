"""SnapshotService: policies."""

from __future__ import annotations

from google.protobuf.field_mask_pb2 import FieldMask
from zfsilo.v1 import snapshot_pb2 as pb

from tests.api.running import DATA, Front, create, refused

NAME = "snapshotPolicies/nightly"
POLICY = pb.SnapshotPolicy(
    calendar="daily", grid="2x1d", selector={"app": "db"}, max_delay_seconds=60
)
CREATE = pb.CreateSnapshotPolicyRequest(policy_id="nightly", policy=POLICY)


async def test_a_policy_from_its_creation_to_its_end(front: Front) -> None:
    api = front.root().snapshots
    made = await api.CreateSnapshotPolicy(CREATE)
    assert made.policy == await api.GetSnapshotPolicy(pb.GetSnapshotPolicyRequest(name=NAME))
    assert (made.policy.name, made.policy.calendar, made.policy.grid) == (NAME, "daily", "2x1d")
    assert (dict(made.policy.selector), made.policy.max_delay_seconds) == ({"app": "db"}, 60)
    assert (await api.CreateSnapshotPolicy(CREATE)).policy == made.policy
    update = pb.UpdateSnapshotPolicyRequest(
        policy=pb.SnapshotPolicy(name=NAME, grouped=True, grid="7x1d", max_delay_seconds=0),
        update_mask=FieldMask(paths=["grouped", "max_delay_seconds"]),
        etag=made.policy.etag,
    )
    changed = (await api.UpdateSnapshotPolicy(update)).policy
    assert (changed.grouped, changed.grid, changed.max_delay_seconds) == (True, "2x1d", 0)
    with refused("ABORTED", "ETAG"):
        await api.UpdateSnapshotPolicy(update)
    with refused("ABORTED", "ETAG"):
        await api.DeleteSnapshotPolicy(
            pb.DeleteSnapshotPolicyRequest(name=NAME, etag=made.policy.etag)
        )
    gone = await api.DeleteSnapshotPolicy(pb.DeleteSnapshotPolicyRequest(name=NAME))
    assert not gone.HasField("policy")
    with refused("NOT_FOUND"):
        await api.GetSnapshotPolicy(pb.GetSnapshotPolicyRequest(name=NAME))


async def test_a_run(front: Front) -> None:
    api = front.root()
    await api.volumes.CreateVolume(create(labels={"app": "db"}))
    await api.volumes.CreateVolume(create("other"))
    await api.snapshots.CreateSnapshotPolicy(CREATE)
    run = pb.RunSnapshotPolicyRequest(name=NAME, validate_only=True)
    planned = await api.snapshots.RunSnapshotPolicy(run)
    assert [operation.name for operation in planned.operations] == [""]
    run.validate_only = False
    done = await api.snapshots.RunSnapshotPolicy(run)
    assert len(done.operations) == 1
    assert list(done.policy.volumes) == [DATA]
    assert done.policy.run_time == done.policy.success_time
    request = pb.ListSnapshotsRequest(filter="policy = nightly")
    (snapshot,) = (await api.snapshots.ListSnapshots(request)).snapshots
    assert (snapshot.volume, snapshot.policy) == (DATA, NAME)
    with refused("NOT_FOUND"):
        await api.snapshots.RunSnapshotPolicy(
            pb.RunSnapshotPolicyRequest(name="snapshotPolicies/none")
        )


async def test_a_failed_run(front: Front) -> None:
    api = front.root()
    await api.volumes.CreateVolume(create(labels={"app": "db"}))
    await api.snapshots.CreateSnapshotPolicy(CREATE)
    front.fixture.launcher.refuses = True
    with refused("UNAVAILABLE", "POLICY_FAILED"):
        await api.snapshots.RunSnapshotPolicy(pb.RunSnapshotPolicyRequest(name=NAME))
    policy = await api.snapshots.GetSnapshotPolicy(pb.GetSnapshotPolicyRequest(name=NAME))
    assert policy.failures[0].startswith("data: ")
    assert not policy.HasField("success_time")


async def test_lists(front: Front) -> None:
    api = front.root().snapshots
    for number in range(3):
        await api.CreateSnapshotPolicy(
            pb.CreateSnapshotPolicyRequest(policy_id=f"p{number}", policy=POLICY)
        )
    request = pb.ListSnapshotPoliciesRequest(page_size=2)
    page = await api.ListSnapshotPolicies(request)
    assert [policy.id for policy in page.policies] == ["p0", "p1"]
    request.page_token = page.next_page_token
    page = await api.ListSnapshotPolicies(request)
    assert [policy.id for policy in page.policies] == ["p2"]
    assert page.next_page_token == ""
    page = await api.ListSnapshotPolicies(pb.ListSnapshotPoliciesRequest(filter="id = p1"))
    assert [policy.id for policy in page.policies] == ["p1"]


async def test_only_administrators_change_policies(front: Front) -> None:
    await front.root().snapshots.CreateSnapshotPolicy(CREATE)
    for role in ("controller", "reader"):
        api = front.role(role, "x").snapshots
        assert (await api.GetSnapshotPolicy(pb.GetSnapshotPolicyRequest(name=NAME))).id == "nightly"
        for method, request in (
            (api.CreateSnapshotPolicy, CREATE),
            (api.RunSnapshotPolicy, pb.RunSnapshotPolicyRequest(name=NAME)),
            (api.DeleteSnapshotPolicy, pb.DeleteSnapshotPolicyRequest(name=NAME)),
        ):
            with refused("PERMISSION_DENIED", "ROLE"):
                await method(request)
