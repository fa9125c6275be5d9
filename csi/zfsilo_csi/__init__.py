"""The CSI plugin: translates CSI calls of Kubernetes into calls to zfsilod; it stores no state.

__main__.py                   command line, configuration, services of a role
server.py                     gRPC server: errors, log lines and metrics of every call
identity.py                   csi.v1.Identity
volumes.py                    csi.v1.Controller: volumes; volume_creation.py: CreateVolume
publications.py               csi.v1.Controller: publish and unpublish
snapshots.py                  csi.v1.Controller: snapshots
group_snapshots.py            csi.v1.GroupController
node.py                       csi.v1.Node, by the zfsilod of the node
convert.py                    zfsilod's messages as CSI messages
volume_capabilities.py        access types and access modes of volumes
service_capabilities.py       capabilities that the plugin advertises
backends.py                   the configured servers: lookup, placement, features
stubs.py, channel.py          calls to a zfsilod, and the gRPC channels below them
"""

__version__ = "0.1.0"  # equal to zfsilod's: both are released together
