"""A CSI driver that does nothing: the time that Kubernetes itself takes for a volume.

idle_driver.py SOCKET NODE: it serves the controller and the node of that name.
"""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from csi.v1 import csi_pb2 as csi

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "idle.example"
THREADS = 32
ControllerRpc = csi.ControllerServiceCapability.RPC
NodeRpc = csi.NodeServiceCapability.RPC
Service = csi.PluginCapability.Service


class IdleService:
    """The methods of CSI that a volume of a pod needs."""

    def __init__(self, node: str) -> None:
        self._node = node

    def GetPluginInfo(self, _request: csi.GetPluginInfoRequest) -> csi.GetPluginInfoResponse:
        return csi.GetPluginInfoResponse(name=NAME, vendor_version="1")

    def GetPluginCapabilities(
        self, _request: csi.GetPluginCapabilitiesRequest
    ) -> csi.GetPluginCapabilitiesResponse:
        service = Service(type=Service.CONTROLLER_SERVICE)
        return csi.GetPluginCapabilitiesResponse(
            capabilities=[csi.PluginCapability(service=service)]
        )

    def Probe(self, _request: csi.ProbeRequest) -> csi.ProbeResponse:
        return csi.ProbeResponse()

    def ControllerGetCapabilities(
        self, _request: csi.ControllerGetCapabilitiesRequest
    ) -> csi.ControllerGetCapabilitiesResponse:
        methods = (ControllerRpc.CREATE_DELETE_VOLUME, ControllerRpc.PUBLISH_UNPUBLISH_VOLUME)
        return csi.ControllerGetCapabilitiesResponse(
            capabilities=[
                csi.ControllerServiceCapability(rpc=ControllerRpc(type=method))
                for method in methods
            ]
        )

    def CreateVolume(self, request: csi.CreateVolumeRequest) -> csi.CreateVolumeResponse:
        size = request.capacity_range.required_bytes
        volume = csi.Volume(volume_id=request.name, capacity_bytes=size)
        return csi.CreateVolumeResponse(volume=volume)

    def DeleteVolume(self, _request: csi.DeleteVolumeRequest) -> csi.DeleteVolumeResponse:
        return csi.DeleteVolumeResponse()

    def ControllerPublishVolume(
        self, _request: csi.ControllerPublishVolumeRequest
    ) -> csi.ControllerPublishVolumeResponse:
        return csi.ControllerPublishVolumeResponse()

    def ControllerUnpublishVolume(
        self, _request: csi.ControllerUnpublishVolumeRequest
    ) -> csi.ControllerUnpublishVolumeResponse:
        return csi.ControllerUnpublishVolumeResponse()

    def NodeGetInfo(self, _request: csi.NodeGetInfoRequest) -> csi.NodeGetInfoResponse:
        return csi.NodeGetInfoResponse(node_id=self._node)

    def NodeGetCapabilities(
        self, _request: csi.NodeGetCapabilitiesRequest
    ) -> csi.NodeGetCapabilitiesResponse:
        rpc = NodeRpc(type=NodeRpc.STAGE_UNSTAGE_VOLUME)
        return csi.NodeGetCapabilitiesResponse(capabilities=[csi.NodeServiceCapability(rpc=rpc)])

    def NodeStageVolume(self, _request: csi.NodeStageVolumeRequest) -> csi.NodeStageVolumeResponse:
        return csi.NodeStageVolumeResponse()

    def NodeUnstageVolume(
        self, _request: csi.NodeUnstageVolumeRequest
    ) -> csi.NodeUnstageVolumeResponse:
        return csi.NodeUnstageVolumeResponse()

    def NodePublishVolume(
        self, request: csi.NodePublishVolumeRequest
    ) -> csi.NodePublishVolumeResponse:
        Path(request.target_path).mkdir(parents=True, exist_ok=True)
        return csi.NodePublishVolumeResponse()

    def NodeUnpublishVolume(
        self, request: csi.NodeUnpublishVolumeRequest
    ) -> csi.NodeUnpublishVolumeResponse:
        with suppress(FileNotFoundError):
            Path(request.target_path).rmdir()
        return csi.NodeUnpublishVolumeResponse()


def handlers(service: IdleService, name: str) -> grpc.GenericRpcHandler:
    """Return the handlers of a service of CSI for the methods that exist here."""
    descriptor = csi.DESCRIPTOR.services_by_name[name]
    methods = {}
    for method in descriptor.methods:
        if work := getattr(service, method.name, None):
            methods[method.name] = grpc.unary_unary_rpc_method_handler(
                without_context(work),
                request_deserializer=getattr(csi, method.input_type.name).FromString,
                response_serializer=getattr(csi, method.output_type.name).SerializeToString,
            )
    return grpc.method_handlers_generic_handler(descriptor.full_name, methods)


def without_context(work: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda request, _context: work(request)


def main() -> None:
    """Serve until SIGTERM."""
    socket, node = sys.argv[1:]
    server = grpc.server(ThreadPoolExecutor(THREADS))
    service = IdleService(node)
    names = ("Identity", "Controller", "Node")
    server.add_generic_rpc_handlers(tuple(handlers(service, name) for name in names))
    server.add_insecure_port(f"unix:{socket}")
    signal.signal(signal.SIGTERM, lambda *_: server.stop(None))
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
