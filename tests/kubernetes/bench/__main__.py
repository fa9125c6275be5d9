"""Kubernetes with the plugin, compared with a driver that does nothing: prints one table.

python -m tests.kubernetes.bench [pods] [calls]
"""

from __future__ import annotations

import sys

from tests.bench.table import Figure, load, table
from tests.kubernetes.bench import calls, pods
from tests.kubernetes.bench.idle import IdleDriver
from tests.kubernetes.cluster import KubeCluster, commands_of
from tests.kubernetes.conftest import README
from tests.kubernetes.workload import KubeNamespace

BENCHES = ("pods", "calls")


def main() -> None:
    """Start a cluster, measure, and end it."""
    chosen = sys.argv[1:] or BENCHES
    cluster = KubeCluster(most_volumes=(calls.CALLS,) * 3)
    driver = IdleDriver(cluster)
    figures: list[Figure] = []
    keep = True
    try:
        cluster.start()
        cluster.install(commands_of(*README))
        cluster.add_zone()
        driver.start()
        figures.append(Figure("load before", load()))
        if "pods" in chosen:
            figures += pods.figures(KubeNamespace(cluster, "bench"))
        if "calls" in chosen:
            figures += calls.figures(cluster)
        figures.append(Figure("load after", load()))
        keep = False
    finally:
        driver.end()
        cluster.end(keep=keep)
        print(table(figures))


if __name__ == "__main__":
    main()
