"""The CSI plugin: it translates what Kubernetes asks for into calls of zfsilod, and keeps nothing.

__main__.py      options, wiring
server.py        the guard around every method: errors, logs, metrics
identity.py      who the plugin is
controller.py    volumes; publish.py, snapshots.py, groups.py: the rest of the controller's work
node.py          what is done on a node, by its local zfsilod
backends.py      the storage hosts; api.py, channel.py: how a zfsilod is asked
"""

__version__ = "0.1.0"  # zfsilod's: they are released together
