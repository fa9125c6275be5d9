"""zfsilod, the daemon of one host: creates its parts, connects them and keeps them running.

zfsilod [--config DIR] [--state DIR] [--check-config | --version]
zfsilod --simulate DIR [--tcp ADDRESS:PORT]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
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
from zfsilod.engine.locks import LOCK_DIRECTORY
from zfsilod.engine.migrate import migrate
from zfsilod.engine.worker import STATE_DIRECTORY, read_boot_id
from zfsilod.gateway.service_manager import notify, notify_watchdog
from zfsilod.model.errors import Unavailable, ZfsiloError
from zfsilod.security import audit, join_file, kept_identity
from zfsilod.service import schedule, simulation
from zfsilod.service.context import ServiceContext, recorded_portals
from zfsilod.service.export_names import record_names
from zfsilod.service.ownership import compare
from zfsilod.service.policy_timers import TimerKeeper
from zfsilod.service.report_socket import ReportSocket
from zfsilod.service.retention import Retention
from zfsilod.service.rooms import Rooms
from zfsilod.service.service import Service
from zfsilod.service.supervisor import Supervisor
from zfsilod.service.watch import HostWatch
from zfsilod.storage.secrets import credential
from zfsilod.storage.store import Store
from zfsilod.systemd.launcher import LocalLauncher, SystemdLauncher
from zfsilod.systemd.policy_timers import PolicyTimers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from zfsilod.api.dbus.server import DbusFront
    from zfsilod.host import HostAdapters
    from zfsilod.monitoring.metrics import Metrics
    from zfsilod.security.kept_identity import IdentityChange
    from zfsilod.service.reconcile import SyncReport

RUN_DIRECTORY = Path("/run/zfsilo")
SIMULATED_ROOT = "tank/zfsilo"
EXIT_CONFIG = 78  # EX_CONFIG of sysexits(3): RestartPreventExitStatus= of the unit
IDLE_CHECK_S = 5
ANONYMOUS = 256  # connections without a certificate at most

Listeners = list[tuple[socket.socket, str]]
"""Listening sockets, each with the name of its unit."""

log = logging.getLogger("zfsilod")


class Paths:
    """Folders of the daemon: those of the host, or all below one folder in a simulation."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.simulated = options.simulate is not None
        self.fake_host = self.simulated or options.simulate_host
        base = options.simulate.resolve() if self.simulated else Path("/")
        self.config: Path = options.config or (base / "etc" if self.simulated else config.DIRECTORY)
        self.state: Path = options.state or (base if self.simulated else Path(STATE_DIRECTORY))
        self.run: Path = base / "run" if self.simulated else RUN_DIRECTORY
        self.tcp: str = options.tcp

    @property
    def host(self) -> str:
        """The kind of host, as the store records it."""
        return "simulated" if self.fake_host else "real"

    @property
    def locks(self) -> Path:
        """The folder of the lock files of operations, and of the socket for their workers."""
        return self.state / "op" if self.fake_host else Path(LOCK_DIRECTORY)


async def serve(paths: Paths, settings: config.Config) -> None:
    """Run the daemon until a signal or, with daemon.idle_exit_s, until it is idle."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.set_default_executor(Rooms())
    async with AsyncExitStack() as stack:
        service, supervisor = await _start_service(paths, settings, stack)
        await compare(service.context)  # before the first request, also of a worker
        reports = ReportSocket(service.executor)
        await reports.open(paths.locks)
        stack.push_async_callback(reports.close)
        service.streams.open(paths.locks)
        stack.callback(service.streams.close)
        await service.blocks.open(paths.locks)
        stack.push_async_callback(service.blocks.close)
        listeners = _listeners(paths)
        metrics = await _start_metrics(paths, settings, service, listeners, stack)
        bus = await _start_front_ends(paths, settings, service, listeners, stack)
        await _record_names(service)
        await supervisor.recover()
        gc.freeze()  # a full collection of what lives as long as zfsilod stops calls for 90 ms
        notify("READY=1")
        log.info("zfsilod %s is ready", __version__)
        background: list[Coroutine[None, None, None]] = [
            supervisor.run(),
            schedule.reconcile_all(
                service, settings.sync.interval_s, partial(_note_report, metrics)
            ),
            HostWatch(service).run(),
            notify_watchdog(),
            _stop_when_idle(service, settings, stop),
            _fail_when_bus_closes(bus),
        ]
        async with _running(background):
            await stop.wait()
        notify("STOPPING=1")
        await service.stop_streams()  # before the front ends: units that zfsilod takes with it


async def _start_service(
    paths: Paths, settings: config.Config, stack: AsyncExitStack
) -> tuple[Service, Supervisor]:
    from zfsilod.wire.storage_server import StorageServers

    store = Store.create(paths.state, host=paths.host, size_bytes=settings.store.size_bytes)
    stack.callback(store.close)
    migrate(store, paths.locks)
    store.prepare_key()
    launcher: SystemdLauncher | LocalLauncher
    if paths.simulated:
        launcher = LocalLauncher(paths.state)
    else:
        debug = settings.daemon.log_level == "debug"
        timeout_s = settings.operations.timeout_s
        launcher = await SystemdLauncher.connect(timeout_s=timeout_s, debug=debug)
    stack.push_async_callback(launcher.close)

    machine = open_host(paths, store)
    servers = StorageServers(
        partial(config.find_server, paths.config),
        machine.machine_id(),
        partial(recorded_portals, store),
    )
    stack.push_async_callback(servers.close)
    sealed = paths.fake_host or bool(credential())
    chosen = settings.settings.but(key_is_sealed=sealed)
    context = ServiceContext(store, machine, servers, chosen, boot_id=read_boot_id())
    context.identity_changes = _keep_identity(paths, settings, machine)
    service = Service(context, launcher)
    with context.read() as txn:
        service.port_gate.close(txn)
    await context.write(service.primaries.withhold)
    service.health.wishes = paths.config / "volumes.d"
    service.health.certificate = join_file.Files(paths.state / "tls").host
    stack.push_async_callback(service.close)
    if not paths.simulated:
        service.audit.write = audit.to_journal
    launcher.listen(service.executor.refresh)
    supervisor = Supervisor(service, retention_s=settings.operations.retention_s)
    if isinstance(launcher, SystemdLauncher):
        context.retention = Retention(launcher.clock())
        service.executor.listeners.append(partial(schedule.stop_unit, service, launcher))
        supervisor.timers = TimerKeeper(context, PolicyTimers(launcher))
        service.executor.listeners.append(supervisor.timers.note)
        stack.push_async_callback(schedule.prepare_shutdown, service, launcher.is_shutting_down)
    return service, supervisor


def _keep_identity(
    paths: Paths, settings: config.Config, machine: HostAdapters
) -> tuple[IdentityChange, ...]:
    """Keep the identity of this host at the first start, and return what has changed since."""
    iscsi = machine.iscsi
    names = iscsi.initiator(), iscsi.host_nqn()
    kept_identity.keep(paths.state, config.identity(settings.settings, *names))
    changes = tuple(config.identity_changes(paths.config, paths.state, *names))
    for change in changes:
        log.warning("%s: %s", change.sentence, change.command)
    return changes


async def _record_names(service: Service) -> None:
    """Record the names of exports before the first request; the sync repeats what fails."""
    try:
        await record_names(service.context)
    except ZfsiloError as error:
        log.warning("the names of exports were not recorded: %s", error.message)


def open_host(paths: Paths, store: Store) -> HostAdapters:
    """Return the adapters through which the daemon reads the host."""
    if paths.fake_host:
        from zfsilod.host.fake import FakeHost

        return FakeHost(paths.state / "facts.json", chap=store.chap, key_store=store)
    from zfsilod.host.real import real_host

    return real_host(store.chap, store)


async def _start_metrics(
    paths: Paths,
    settings: config.Config,
    service: Service,
    listeners: Listeners,
    stack: AsyncExitStack,
) -> Metrics | None:
    """Serve the metrics on their socket; without one their library is not loaded."""
    from zfsilod.monitoring import exporter

    own = [listener for listener, name in listeners if name == exporter.SOCKET]
    if not own:
        return None
    from zfsilod.monitoring.metrics import Metrics

    def expiries() -> dict[str, float]:
        return join_file.expiries(paths.state / "tls", config.server_certificates(paths.config))

    metrics = Metrics(service, most=settings.metrics.volumes, expiries=expiries)
    stack.push_async_callback(metrics.close)
    service.executor.listeners.append(metrics.note)
    server = exporter.Scrape(metrics.text)
    stack.push_async_callback(server.close)
    for listener in own:
        await server.open(listener)
    return metrics


async def _start_front_ends(
    paths: Paths,
    settings: config.Config,
    service: Service,
    listeners: Listeners,
    stack: AsyncExitStack,
) -> DbusFront | None:
    from zfsilod.api.dbus import server as dbus_server
    from zfsilod.api.servers import ApiServers
    from zfsilod.gateway import link
    from zfsilod.gateway.connections import Connections
    from zfsilod.gateway.limits import Limits
    from zfsilod.gateway.local import NODE_SOCKET
    from zfsilod.monitoring.exporter import SOCKET as METRICS_SOCKET
    from zfsilod.security.tls import TlsFiles

    tls = TlsFiles(paths.state / "tls", tuple(settings.tls.imported_roles))
    most = settings.daemon.max_connections
    limits = Limits(unix=most, node=most, tcp=most, anonymous=min(most, ANONYMOUS))
    connections = Connections(paths.run / "private", limits, tls)
    server = ApiServers(service, connections, tls.files, max_calls=settings.daemon.max_calls)
    await server.start()
    stack.push_async_callback(server.stop)
    for listener, name in listeners:
        if name == link.SOCKET:
            connections.listen_to_gateway(listener)
        elif name != METRICS_SOCKET:
            connections.listen(listener, node=name == NODE_SOCKET)
    if paths.simulated:
        address, port = listeners[-1][0].getsockname()[:2]
        await simulation.know_itself(service, paths.config, tls.files, f"{address}:{port}")
        return None
    bus = await dbus_server.serve(None, service, version=__version__)
    stack.push_async_callback(bus.close)
    return bus


def _listeners(paths: Paths) -> Listeners:
    """Return the sockets of systemd, else new ones, each with the name of its unit."""
    from zfsilod.gateway import local, sockets
    from zfsilod.monitoring import exporter

    if inherited := sockets.inherited():
        return inherited
    paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    (paths.run / "csi").mkdir(mode=0o750, exist_ok=True)
    own = [
        (sockets.listen_unix(paths.run / "zfsilod.sock"), "zfsilod.socket"),
        (sockets.listen_unix(paths.run / "csi" / "zfsilod.sock"), local.NODE_SOCKET),
        (sockets.listen_unix(paths.run / "metrics.sock"), exporter.SOCKET),
    ]
    tcp = paths.tcp or (simulation.LISTEN if paths.simulated else "")
    if tcp:
        address, _colon, port = tcp.rpartition(":")
        listener = sockets.listen_tcp(address.strip("[]"), int(port))
        own.append((listener, "zfsilod-tcp.socket"))
    return own


async def _note_report(metrics: Metrics | None, report: SyncReport) -> None:
    if metrics is not None:
        metrics.note_report(report)
        await metrics.count_orphans()


async def _stop_when_idle(service: Service, settings: config.Config, stop: asyncio.Event) -> None:
    """Stop after daemon.idle_exit_s without volumes, attachments or operations."""
    if not settings.daemon.idle_exit_s:
        return
    quiet_s = 0
    while quiet_s < settings.daemon.idle_exit_s:
        await asyncio.sleep(IDLE_CHECK_S)
        quiet_s = 0 if service.holds_anything() else quiet_s + IDLE_CHECK_S
    log.info("idle for %d s, exiting", quiet_s)
    stop.set()


async def _fail_when_bus_closes(bus: DbusFront | None) -> None:
    """End the daemon when the bus closes, since no unit can be started without it."""
    if bus is not None:
        await bus.closed()
        raise Unavailable("the system bus is closed; systemd restarts zfsilod")


@asynccontextmanager
async def _running(work: list[Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """Run coroutines beside the body and cancel them after it; one that fails ends the daemon."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in work]
            yield
            for task in tasks:
                task.cancel()
    except* ZfsiloError as failed:
        raise failed.exceptions[0] from None


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="zfsilod", description="network block storage for ZFS")
    parser.add_argument("--config", type=Path, metavar="DIR", help="instead of /etc/zfsilo")
    parser.add_argument("--state", type=Path, metavar="DIR", help="instead of /var/lib/zfsilo")
    parser.add_argument("--simulate", type=Path, metavar="DIR", help="simulate a host below DIR")
    parser.add_argument(
        "--simulate-host", action="store_true", help="simulate a host under the real systemd"
    )
    parser.add_argument("--tcp", default="", metavar="ADDRESS:PORT", help="listen here, with TLS")
    parser.add_argument(
        "--check-config", action="store_true", help="check the configuration and exit"
    )
    parser.add_argument("--version", action="version", version=f"zfsilod {__version__}")
    return parser.parse_args(arguments)


def main() -> int:
    """Run zfsilod; exit 78 when the configuration is wrong, 1 when it cannot start."""
    options = _parse(sys.argv[1:])
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its errors are raised, and logged by us
    paths = Paths(options)
    try:
        settings = config.load(paths.config, paths.state)
    except ZfsiloError as error:
        sys.stderr.write(f"zfsilod: {error.message}\n")
        return EXIT_CONFIG
    if options.check_config:
        sys.stdout.write(f"{paths.config}: the configuration is valid\n")
        return 0
    if paths.fake_host and not settings.server.root:
        settings.server.root = SIMULATED_ROOT
    if paths.simulated:  # a cluster under test has its folders in one of these
        settings.csi.allowed_paths += [str(paths.state), tempfile.gettempdir()]
    level = settings.daemon.log_level.upper()
    # The name of a module helps only a developer.
    text = "%(name)s: %(message)s" if level == "DEBUG" else "%(message)s"
    logging.basicConfig(level=level, format=text, stream=sys.stderr)
    try:
        asyncio.run(serve(paths, settings))
    except ZfsiloError as error:
        sys.stderr.write(f"zfsilod: {error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
