"""zfsilod: the daemon of one host. This file wires its parts and keeps them running.

zfsilod [--config DIR] [--state DIR] [--check-config | --version]
zfsilod --simulate DIR [--tcp ADDRESS:PORT]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod import __version__, config
from zfsilod.engine.worker import LOCK_DIRECTORY, STATE_DIRECTORY, read_boot_id
from zfsilod.model.errors import Unavailable, ZfsiloError
from zfsilod.security import audit, join_file
from zfsilod.service import simulation
from zfsilod.service.context import ServiceContext
from zfsilod.service.service import Service
from zfsilod.service.supervisor import Supervisor
from zfsilod.storage.store import Store
from zfsilod.storage.upgrade import upgrade
from zfsilod.systemd.launcher import LocalLauncher, SystemdLauncher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from zfsilod.api.dbus.server import DbusFront
    from zfsilod.host import Host
    from zfsilod.model.records import Operation
    from zfsilod.monitoring.metrics import Metrics

RUN_DIRECTORY = Path("/run/zfsilo")
SIMULATED_ROOT = "tank/zfsilo"
EXIT_CONFIG = 78  # EX_CONFIG of sysexits(3): systemd does not start us again and again
IDLE_CHECK_S = 5
SOON_S = 15  # until the next look when something could not be done: a pool not imported yet
LATE_S = 600  # it is tried ever later, but never later than this
FOLLOWED = ("disconnect", "unpublish", "delete")

Listeners = list[tuple[socket.socket, str]]
"""Listening sockets, each with the name of its unit."""

log = logging.getLogger("zfsilod")


class Places:
    """Where this daemon keeps what: real, or all of it below one directory of a simulation."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.simulated = options.simulate is not None
        self.fake_host = self.simulated or options.simulate_host
        base = options.simulate.resolve() if self.simulated else Path("/")
        self.config: Path = options.config or (base / "etc" if self.simulated else config.DIRECTORY)
        self.state: Path = options.state or (base if self.simulated else STATE_DIRECTORY)
        self.run: Path = base / "run" if self.simulated else RUN_DIRECTORY
        self.tcp: str = options.tcp

    @property
    def host(self) -> str:
        """The kind of host, as the store keeps it."""
        return "simulated" if self.fake_host else "real"


async def serve(places: Places, settings: config.Config) -> None:
    """Run the daemon until a signal or, when so configured, until it is idle."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        service, supervisor = await _engine(places, settings, stack)
        listeners = _listeners(places)
        metrics = await _metrics(places, settings, service, listeners, stack)
        bus = await _front_ends(places, settings, service, listeners, stack)
        await supervisor.recover()
        _notify("READY=1")
        log.info("zfsilod %s is ready", __version__)
        background: list[Coroutine[None, None, None]] = [
            supervisor.run(),
            _keep_in_sync(service, settings.sync.interval_s, metrics),
            _watchdog(),
            _until_idle(service, settings, stop),
            _until_bus_ends(bus),
        ]
        async with _running(background):
            await stop.wait()
        _notify("STOPPING=1")


async def _engine(
    places: Places, settings: config.Config, stack: AsyncExitStack
) -> tuple[Service, Supervisor]:
    from zfsilod.wire.storage_server import StorageServers

    store = Store.create(places.state, host=places.host, size_bytes=settings.store.size_bytes)
    stack.callback(store.close)
    upgrade(store, LOCK_DIRECTORY if places.host == "real" else places.state / "op")
    launcher = await _launcher(places, settings)
    stack.push_async_callback(launcher.close)

    servers = StorageServers(partial(config.find_server, places.config))
    stack.push_async_callback(servers.close)
    machine = open_host(places, store)
    context = ServiceContext(store, machine, servers, settings.settings, boot_id=read_boot_id())
    service = Service(context, launcher)
    stack.push_async_callback(service.close)
    if not places.simulated:
        service.audit.write = audit.to_journal
    launcher.listen(service.executor.refresh)
    if isinstance(launcher, SystemdLauncher):
        service.executor.listeners.append(partial(_follow_down, service, launcher))
    return service, Supervisor(service, retention_s=settings.operations.retention_s)


def open_host(places: Places, store: Store) -> Host:
    """Return the adapters that the daemon reads the host through."""
    if places.fake_host:
        from zfsilod.host.fake import FakeHost

        return FakeHost(places.state / "facts.json", chap=store.chap)
    from zfsilod.host.real import real_host

    return real_host(store.chap)


async def _launcher(places: Places, settings: config.Config) -> SystemdLauncher | LocalLauncher:
    if places.simulated:
        return LocalLauncher(places.state)
    return await SystemdLauncher.connect(timeout_s=settings.operations.timeout_s)


async def _metrics(
    places: Places,
    settings: config.Config,
    service: Service,
    listeners: Listeners,
    stack: AsyncExitStack,
) -> Metrics | None:
    """Serve the metrics where somebody may ask for them; else not even their library is loaded."""
    from zfsilod.monitoring import exporter

    own = [listener for listener, name in listeners if name == exporter.SOCKET]
    if not own:
        return None
    from zfsilod.monitoring.metrics import Metrics

    def expiries() -> dict[str, float]:
        return join_file.expiries(places.state / "tls", config.server_certificates(places.config))

    metrics = Metrics(service, most=settings.metrics.volumes, expiries=expiries)
    stack.push_async_callback(metrics.close)
    service.executor.listeners.append(metrics.note)
    server = exporter.Scrape(metrics.text)
    stack.push_async_callback(server.close)
    for listener in own:
        await server.open(listener)
    return metrics


async def _front_ends(
    places: Places,
    settings: config.Config,
    service: Service,
    listeners: Listeners,
    stack: AsyncExitStack,
) -> DbusFront | None:
    from zfsilod.api.dbus import server as dbus_server
    from zfsilod.api.rpc.server import GrpcServer
    from zfsilod.gateway.limits import Limits
    from zfsilod.gateway.listener import NODE_SOCKET, Gateway
    from zfsilod.monitoring.exporter import SOCKET as METRICS_SOCKET
    from zfsilod.security.tls import ServerTls

    tls = ServerTls(places.state / "tls", tuple(settings.tls.imported_roles))
    most = settings.daemon.max_connections
    gateway = Gateway(places.run / "private", Limits(unix=most, node=most, tcp=most), tls)
    server = GrpcServer(service, gateway, tls.files)
    await server.start()
    stack.push_async_callback(server.stop)
    for listener, name in listeners:
        if name != METRICS_SOCKET:
            gateway.listen(listener, node=name == NODE_SOCKET)
    if places.simulated:
        address, port = listeners[-1][0].getsockname()[:2]
        await simulation.know_itself(service, places.config, tls.files, f"{address}:{port}")
        return None
    bus = await dbus_server.serve(None, service, version=__version__)
    stack.push_async_callback(bus.close)
    return bus


def _listeners(places: Places) -> Listeners:
    """Return the sockets that systemd gave us, or our own; each with the name of its unit."""
    from zfsilod.gateway import listener as gateway_listener
    from zfsilod.gateway import sockets
    from zfsilod.monitoring import exporter

    given = sockets.inherited()
    if given:
        return given
    places.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    (places.run / "csi").mkdir(mode=0o750, exist_ok=True)
    own = [
        (sockets.listen_unix(places.run / "zfsilod.sock"), "zfsilod.socket"),
        (sockets.listen_unix(places.run / "csi" / "zfsilod.sock"), gateway_listener.NODE_SOCKET),
        (sockets.listen_unix(places.run / "metrics.sock"), exporter.SOCKET),
    ]
    tcp = places.tcp or (simulation.LISTEN if places.simulated else "")
    if tcp:
        address, _colon, port = tcp.rpartition(":")
        listener = sockets.listen_tcp(address.strip("[]"), int(port))
        own.append((listener, "zfsilod-tcp.socket"))
    return own


async def _keep_in_sync(service: Service, interval_s: int, metrics: Metrics | None) -> None:
    """Bring back what the records say should be there, at start and from then on."""
    known: tuple[tuple[str, str], ...] = ()
    again_s = SOON_S
    await service.reconciler.clear_leftovers(caller="zfsilod")
    while True:
        unfinished = True
        try:
            report = await service.reconciler.sync_all("zfsilod")
        except ZfsiloError as error:
            log.warning("the volumes could not be looked at: %s", error.message)
        else:
            for name, complaint in report.complaints if report.complaints != known else ():
                log.warning("volume %s is not as recorded: %s", name, complaint)
            known, unfinished = report.complaints, report.unfinished
            if metrics is not None:
                metrics.note_report(report)
                await metrics.count_orphans()
        if not unfinished and not interval_s:
            return
        await asyncio.sleep(min(again_s, interval_s or LATE_S) if unfinished else interval_s)
        again_s = min(2 * again_s, LATE_S) if unfinished else SOON_S


def _follow_down(service: Service, launcher: SystemdLauncher, operation: Operation) -> None:
    """Let zfsilo-volume@NAME follow when its volume went down by another way."""
    if operation.kind in FOLLOWED and operation.state == "DONE":
        service.executor.spawn(launcher.stop_volume(operation.subject.partition("/")[2]))


async def _watchdog() -> None:
    """Tell systemd at half its deadline that the event loop turns: sd_watchdog_enabled(3)."""
    interval_us = int(os.environ.get("WATCHDOG_USEC", "0"))
    while interval_us:
        _notify("WATCHDOG=1")
        await asyncio.sleep(interval_us / 2_000_000)


async def _until_idle(service: Service, settings: config.Config, stop: asyncio.Event) -> None:
    """Stop after a quiet time, when so configured and nothing is held or under way."""
    if not settings.daemon.idle_exit_s:
        return
    quiet_s = 0
    while quiet_s < settings.daemon.idle_exit_s:
        await asyncio.sleep(IDLE_CHECK_S)
        quiet_s = 0 if service.holds_anything() else quiet_s + IDLE_CHECK_S
    log.info("idle for %d s: good bye", quiet_s)
    stop.set()


async def _until_bus_ends(bus: DbusFront | None) -> None:
    """End the daemon when the bus goes away, without which nothing can be launched."""
    if bus is not None:
        await bus.closed()
        raise Unavailable("the system bus went away: systemd starts zfsilod again")


@asynccontextmanager
async def _running(work: list[Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """Run these beside the body, and end them with it; one that fails ends the daemon."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
            yield
            for task in tasks:
                task.cancel()
    except* ZfsiloError as failed:
        raise failed.exceptions[0] from None


def _notify(state: str) -> None:
    with contextlib.suppress(ImportError):
        from systemd.daemon import notify

        notify(state)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="zfsilod", description="network block storage for ZFS")
    parser.add_argument("--config", type=Path, metavar="DIR", help="instead of /etc/zfsilo")
    parser.add_argument("--state", type=Path, metavar="DIR", help="instead of /var/lib/zfsilo")
    parser.add_argument("--simulate", type=Path, metavar="DIR", help="a made-up host below DIR")
    parser.add_argument(
        "--simulate-host", action="store_true", help="a made-up host under the real systemd"
    )
    parser.add_argument("--tcp", default="", metavar="ADDRESS:PORT", help="listen here, with TLS")
    parser.add_argument("--check-config", action="store_true", help="check, say so, and exit")
    parser.add_argument("--version", action="version", version=f"zfsilod {__version__}")
    return parser.parse_args(arguments)


def main() -> int:
    """Run zfsilod; exit 78 when the configuration is wrong, 1 when it cannot start."""
    options = _options(sys.argv[1:])
    places = Places(options)
    try:
        settings = config.load(places.config)
    except ZfsiloError as error:
        sys.stderr.write(f"zfsilod: {error.message}\n")
        return EXIT_CONFIG
    if options.check_config:
        sys.stdout.write(f"{places.config}: the configuration is right\n")
        return 0
    if places.fake_host and not settings.server.root:
        settings.server.root = SIMULATED_ROOT
    if places.simulated:  # a cluster that tries it out has its folders here or there
        settings.csi.allowed_paths += [str(places.state), tempfile.gettempdir()]
    logging.basicConfig(
        level=settings.daemon.log_level.upper(), format="%(name)s: %(message)s", stream=sys.stderr
    )
    try:
        asyncio.run(serve(places, settings))
    except ZfsiloError as error:
        sys.stderr.write(f"zfsilod: {error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
