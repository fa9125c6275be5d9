"""csi.v1.Identity: name, version, capabilities and readiness of the plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from csi.v1 import csi_pb2 as csi
from google.protobuf.wrappers_pb2 import BoolValue

from zfsilo_csi import service_capabilities
from zfsilo_csi.errors import CsiError

if TYPE_CHECKING:
    from zfsilo_csi.calls import CsiCall

PROBE_S = 2.0


class FeatureSource(Protocol):
    """The features of the zfsilod behind this process. Raises CsiError if none replies."""

    async def features(self, call: CsiCall) -> frozenset[str]: ...


class IdentityService:
    """The methods of csi.v1.Identity, the same for the controller and the node."""

    def __init__(self, driver: str, version: str, source: FeatureSource) -> None:
        self._driver = driver
        self._version = version
        self._source = source

    async def GetPluginInfo(
        self, _request: csi.GetPluginInfoRequest, _call: CsiCall
    ) -> csi.GetPluginInfoResponse:
        return csi.GetPluginInfoResponse(name=self._driver, vendor_version=self._version)

    async def GetPluginCapabilities(
        self, _request: csi.GetPluginCapabilitiesRequest, call: CsiCall
    ) -> csi.GetPluginCapabilitiesResponse:
        return service_capabilities.plugin(await self._source.features(call))

    async def Probe(self, _request: csi.ProbeRequest, call: CsiCall) -> csi.ProbeResponse:
        """Report whether a zfsilod replies: "not ready" is not an error of this process."""
        try:
            await self._source.features(call.at_most(PROBE_S))
        except CsiError:
            return csi.ProbeResponse(ready=BoolValue(value=False))
        return csi.ProbeResponse(ready=BoolValue(value=True))
