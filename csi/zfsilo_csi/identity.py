"""Who the plugin is, and what it can do: what CSI has words for and every zfsilod behind it can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from csi.v1 import csi_pb2 as csi
from google.protobuf.wrappers_pb2 import BoolValue

from zfsilo_csi.calls import short
from zfsilo_csi.errors import CsiError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zfsilo_csi.calls import Call

SNAPSHOTS, CLONES, GROUPS = "snapshots", "clones", "snapshot-groups"  # features of zfsilod
PROBE_S = 2.0

Service = csi.PluginCapability.Service
Expansion = csi.PluginCapability.VolumeExpansion
ControllerRpc = csi.ControllerServiceCapability.RPC
NodeRpc = csi.NodeServiceCapability.RPC
GroupRpc = csi.GroupControllerServiceCapability.RPC

CONTROLLER: Mapping[csi.ControllerServiceCapability.RPC.Type, str] = {  # "": of every zfsilod
    ControllerRpc.CREATE_DELETE_VOLUME: "",
    ControllerRpc.PUBLISH_UNPUBLISH_VOLUME: "",
    ControllerRpc.LIST_VOLUMES: "",
    ControllerRpc.GET_CAPACITY: "",
    ControllerRpc.CREATE_DELETE_SNAPSHOT: SNAPSHOTS,
    ControllerRpc.LIST_SNAPSHOTS: SNAPSHOTS,
    ControllerRpc.CLONE_VOLUME: CLONES,
    ControllerRpc.PUBLISH_READONLY: "",
    ControllerRpc.EXPAND_VOLUME: "",
    ControllerRpc.LIST_VOLUMES_PUBLISHED_NODES: "",
    ControllerRpc.VOLUME_CONDITION: "",
    ControllerRpc.GET_VOLUME: "",
    ControllerRpc.SINGLE_NODE_MULTI_WRITER: "",
    ControllerRpc.MODIFY_VOLUME: "",
    ControllerRpc.GET_SNAPSHOT: SNAPSHOTS,
}
# Not VOLUME_MOUNT_GROUP: ext4 and xfs have no mount option for it, and kubelet would no longer
# change the group itself.
NODE = (
    NodeRpc.STAGE_UNSTAGE_VOLUME,
    NodeRpc.GET_VOLUME_STATS,
    NodeRpc.EXPAND_VOLUME,
    NodeRpc.VOLUME_CONDITION,
    NodeRpc.SINGLE_NODE_MULTI_WRITER,
)


class Source(Protocol):
    """Whoever knows what the zfsilod behind this process can do."""

    async def features(self, call: Call) -> frozenset[str]: ...


class Identity:
    """The methods of csi.v1.Identity: the same in the controller's and the node's process."""

    def __init__(self, executor: str, version: str, source: Source) -> None:
        self._driver = executor
        self._version = version
        self._source = source

    async def GetPluginInfo(
        self, _request: csi.GetPluginInfoRequest, _call: Call
    ) -> csi.GetPluginInfoResponse:
        return csi.GetPluginInfoResponse(name=self._driver, vendor_version=self._version)

    async def GetPluginCapabilities(
        self, _request: csi.GetPluginCapabilitiesRequest, call: Call
    ) -> csi.GetPluginCapabilitiesResponse:
        services = [Service.CONTROLLER_SERVICE, Service.VOLUME_ACCESSIBILITY_CONSTRAINTS]
        if GROUPS in await self._source.features(call):
            services.append(Service.GROUP_CONTROLLER_SERVICE)
        found = [csi.PluginCapability(service=Service(type=each)) for each in services]
        online = Expansion(type=Expansion.ONLINE)
        return csi.GetPluginCapabilitiesResponse(
            capabilities=[*found, csi.PluginCapability(volume_expansion=online)]
        )

    async def Probe(self, _request: csi.ProbeRequest, call: Call) -> csi.ProbeResponse:
        """Tell whether a zfsilod answers. That none does is no fault of this process."""
        try:
            await self._source.features(short(call, PROBE_S))
        except CsiError:
            return csi.ProbeResponse(ready=BoolValue(value=False))
        return csi.ProbeResponse(ready=BoolValue(value=True))


def controller(features: frozenset[str]) -> csi.ControllerGetCapabilitiesResponse:
    """Return what the controller can do."""
    return csi.ControllerGetCapabilitiesResponse(
        capabilities=[
            csi.ControllerServiceCapability(rpc=ControllerRpc(type=each))
            for each, feature in CONTROLLER.items()
            if not feature or feature in features
        ]
    )


def node() -> csi.NodeGetCapabilitiesResponse:
    """Return what the node's service can do."""
    return csi.NodeGetCapabilitiesResponse(
        capabilities=[csi.NodeServiceCapability(rpc=NodeRpc(type=each)) for each in NODE]
    )


def group(features: frozenset[str]) -> csi.GroupControllerGetCapabilitiesResponse:
    """Return what the group controller can do."""
    known = [GroupRpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT] if GROUPS in features else []
    return csi.GroupControllerGetCapabilitiesResponse(
        capabilities=[csi.GroupControllerServiceCapability(rpc=GroupRpc(type=e)) for e in known]
    )
