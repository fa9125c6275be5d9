"""Objects of the whole cluster that tests make; they are removed with the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.kubernetes.cluster import KubeCluster

DRIVER = "csi.zfsilo.io"


def storage_class(
    cluster: KubeCluster, name: str, parameters: dict[str, str] | None = None, **fields: Any
) -> str:
    """Create a StorageClass of the plugin and return its name."""
    content = {
        "provisioner": DRIVER,
        "allowVolumeExpansion": True,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "parameters": parameters or {},
        **fields,
    }
    if cluster.api.get("storageclasses", name) is None:
        cluster.api.create("storageclasses", name, **content)
    return name


def attributes_class(cluster: KubeCluster, name: str, parameters: dict[str, str]) -> str:
    """Create a VolumeAttributesClass of the plugin and return its name."""
    cluster.api.create("volumeattributesclasses", name, driverName=DRIVER, parameters=parameters)
    return name
