"""Pods with new volumes, timed by the events of the control plane, beside the idle driver."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.table import Figure
from tests.kubernetes.api import named
from tests.kubernetes.bench import idle
from tests.kubernetes.workload import CLASS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kubernetes.api import Object
    from tests.kubernetes.workload import KubeNamespace

PODS, ROUNDS = 30, 1  # the two nodes of the zone may have 40 volumes
SINGLE = 4
ZONE = {"topology.zfsilo.io/zone": "default"}
CLASSES = (CLASS, idle.CLASS)
LONG_S = 400.0


def figures(ns: KubeNamespace) -> Iterator[Figure]:
    """Measure single pods, then many at once."""
    yield from _single(ns)
    yield from _many(ns)


def _single(ns: KubeNamespace) -> Iterator[Figure]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CLASSES}
    for number in range(SINGLE + 1):  # the first one warms up
        for name in CLASSES:
            times[name].append(_latency(ns, name, f"single-{name}-{number}"))
    texts = "claim to running pod", "CreateVolume to running pod"
    for column, text in enumerate(texts):
        own, other = ([one[column] for one in times[name][1:]] for name in CLASSES)
        yield Figure(f"{text}, {SINGLE} times, p50", f"{median(own):.1f} s")
        yield Figure("  of the driver that does nothing", f"{median(other):.1f} s")
        yield Figure("  ratio", f"{median(own) / median(other):.2f}")


def _latency(ns: KubeNamespace, storage_class: str, name: str) -> tuple[float, float]:
    """Return the seconds from the claim, and from the event Provisioning, to the running pod."""
    ns.claim(name, storage_class=storage_class)
    ns.pod(name, name, nodeSelector=ZONE)
    claimed = time.monotonic()
    ns.api.until(
        "events",
        lambda events: any(_provisions(event, name) for event in events),
        f"{name} is provisioned",
        namespace=ns.name,
    )
    provisioned = time.monotonic()
    ns.running(name)
    running = time.monotonic()
    _delete(ns, [name])
    return running - claimed, running - provisioned


def _provisions(event: Object, claim: str) -> bool:
    """Tell whether the provisioner is about to call CreateVolume for a claim."""
    about = event["reason"], event["involvedObject"]["name"]
    return about == ("Provisioning", claim)


def _many(ns: KubeNamespace) -> Iterator[Figure]:
    seconds: dict[str, list[float]] = {name: [] for name in ("none", *CLASSES)}
    for number in range(ROUNDS):
        for name, taken in seconds.items():
            taken.append(_all(ns, name, number))
    best = {name: min(taken) for name, taken in seconds.items()}
    for name, text in zip(seconds, ("no volume", "zfsilo", "the idle driver"), strict=True):
        rates = ", ".join(f"{60 * PODS / one:.0f}" for one in seconds[name])
        yield Figure(f"pods a minute, {PODS} at once, {text}", rates)
    ratio = best[idle.CLASS] / best[CLASS]
    yield Figure("  ratio to the idle driver", f"{ratio:.2f}")


def _all(ns: KubeNamespace, storage_class: str, number: int) -> float:
    """Return the seconds until PODS pods with a new volume each run."""
    names = [f"{storage_class}-{number}-{pod}" for pod in range(PODS)]
    claims = names if storage_class in CLASSES else []
    for name in claims:
        ns.claim(name, storage_class=storage_class)
    started = time.monotonic()
    for name in names:
        ns.pod(name, *([name] if claims else []), nodeSelector=ZONE)
    ns.all_running(PODS, LONG_S)
    taken = time.monotonic() - started
    _delete(ns, names)
    return taken


def _delete(ns: KubeNamespace, names: list[str]) -> None:
    """Delete pods and claims, and wait until no volume is left."""
    for kind in ("pods", "persistentvolumeclaims"):
        for name in names:
            ns.api.delete(kind, name, ns.name)
    ns.api.until(
        "pods",
        lambda pods: not any(named(pods, name) for name in names),
        "no pod is left",
        namespace=ns.name,
        within_s=LONG_S,
    )
    ns.cluster.no_volume_of(ns.name)
