"""The capabilities that the CSI services advertise; some depend on the features of zfsilod."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi

if TYPE_CHECKING:
    from collections.abc import Mapping

# Features of zfsilod.
SNAPSHOTS, CLONES, GROUPS, BLOCKS = "snapshots", "clones", "snapshot-groups", "snapshot-blocks"
TLS = "tls"

Service = csi.PluginCapability.Service
Expansion = csi.PluginCapability.VolumeExpansion
ControllerRpc = csi.ControllerServiceCapability.RPC
NodeRpc = csi.NodeServiceCapability.RPC
GroupRpc = csi.GroupControllerServiceCapability.RPC

# The feature of zfsilod that a capability needs; "": none.
CONTROLLER: Mapping[csi.ControllerServiceCapability.RPC.Type, str] = {
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
    ControllerRpc.VOLUME_CONDITION: "",  # for sidecars built on CSI 1.12
    ControllerRpc.GET_VOLUME: "",
    ControllerRpc.SINGLE_NODE_MULTI_WRITER: "",
    ControllerRpc.MODIFY_VOLUME: "",
    ControllerRpc.GET_SNAPSHOT: SNAPSHOTS,
    ControllerRpc.GET_VOLUME_HEALTH: "",
    ControllerRpc.LIST_VOLUME_HEALTH: "",
}
# Not VOLUME_MOUNT_GROUP: ext4 and xfs have no mount option for it, and kubelet would no longer
# apply fsGroup itself.
NODE = (
    NodeRpc.STAGE_UNSTAGE_VOLUME,
    NodeRpc.GET_VOLUME_STATS,
    NodeRpc.EXPAND_VOLUME,
    NodeRpc.VOLUME_CONDITION,  # for kubelets built on CSI 1.12
    NodeRpc.SINGLE_NODE_MULTI_WRITER,
    NodeRpc.GET_VOLUME_HEALTH,
    NodeRpc.GET_STORAGE_HEALTH,
)


def plugin(features: frozenset[str]) -> csi.GetPluginCapabilitiesResponse:
    """Return the capabilities of the plugin."""
    services = [Service.CONTROLLER_SERVICE, Service.VOLUME_ACCESSIBILITY_CONSTRAINTS]
    if GROUPS in features:
        services.append(Service.GROUP_CONTROLLER_SERVICE)
    if BLOCKS in features:
        services.append(Service.SNAPSHOT_METADATA_SERVICE)
    online = csi.PluginCapability(volume_expansion=Expansion(type=Expansion.ONLINE))
    return csi.GetPluginCapabilitiesResponse(
        capabilities=[
            *(csi.PluginCapability(service=Service(type=service)) for service in services),
            online,
        ]
    )


def controller(features: frozenset[str]) -> csi.ControllerGetCapabilitiesResponse:
    """Return the capabilities of the controller service."""
    return csi.ControllerGetCapabilitiesResponse(
        capabilities=[
            csi.ControllerServiceCapability(rpc=ControllerRpc(type=capability))
            for capability, feature in CONTROLLER.items()
            if not feature or feature in features
        ]
    )


def node() -> csi.NodeGetCapabilitiesResponse:
    """Return the capabilities of the node service."""
    return csi.NodeGetCapabilitiesResponse(
        capabilities=[csi.NodeServiceCapability(rpc=NodeRpc(type=rpc)) for rpc in NODE]
    )


def group_controller(features: frozenset[str]) -> csi.GroupControllerGetCapabilitiesResponse:
    """Return the capabilities of the group controller service."""
    response = csi.GroupControllerGetCapabilitiesResponse()
    if GROUPS in features:
        response.capabilities.add().rpc.type = GroupRpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT
    return response
