"""The processes of zfs(8) that an operation starts: each takes 10 ms, and more on a busy pool."""

from __future__ import annotations

import pytest

from tests.examples import PLANS, operation
from tests.host.zfs_tool import ZfsTool
from tests.worker_rig import WorkerRig
from zfsilod.engine import worker
from zfsilod.engine.step import HostStep
from zfsilod.host.zfs import RealZfs

STARTS = {
    "create": "get create get",  # the probe, and the guid that zfs gave
    "delete": "get get destroy",  # the guard, the probe and the check before the destruction
    "delete-into-trash": "get get get get get create rename",
    "undelete": "get get get get rename",
    "resize": "get get set",
    "properties": "get set",
    "count-epoch": "get set",
    "not-newer": "get",
}


@pytest.mark.parametrize("name", STARTS)
def test_an_operation_starts_few_tools(name: str) -> None:
    example = next(example for example in PLANS if example.name == name)
    rig, tool = WorkerRig(), ZfsTool("tank")
    tool.add("tank/zfsilo", "filesystem")
    rig.prepare(example)  # the rest of the host is simulated
    rig.host.zfs = zfs = RealZfs(tool)  # type: ignore[assignment]
    zfs.users = lambda dataset: []  # type: ignore[method-assign]
    for step in example.before:
        if isinstance(step, HostStep) and step.part == "POOL":
            step.do(rig.host)
    tool.starts.clear()
    worker.run(operation(example), rig.host, lambda stored: stored)
    assert " ".join(tool.starts) == STARTS[name]
