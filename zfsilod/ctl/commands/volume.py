"""`zfsiloctl volume` on a server: list, show, create, update, delete, publish, sync."""

from __future__ import annotations

import sys

from zfsilod.ctl import messages as pb
from zfsilod.ctl import volume_files
from zfsilod.ctl.change import change, send
from zfsilod.ctl.client import Server, dial
from zfsilod.ctl.commands.host import say_unregistered
from zfsilod.ctl.confirm import confirmed
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.features import check_tls
from zfsilod.ctl.filters import all_of, equals, label_filters
from zfsilod.ctl.output import volume as volume_output
from zfsilod.ctl.output.facts import all_hold, noteworthy, show_facts, summary
from zfsilod.ctl.output.messages import as_json, show_all
from zfsilod.ctl.output.table import clean, say
from zfsilod.ctl.parse import (
    assignments,
    bare,
    changed_hosts,
    changed_labels,
    changes,
    check_one_or_all,
    host_ids,
    parse_size,
    resource,
    transport,
)
from zfsilod.ctl.times import at
from zfsilod.model.errors import InvalidArgument, NotFound, ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable
    from typing import Any

    from zfsilod.ctl.volume_files import VolumeFile


def list_volumes(args: Namespace) -> None:
    """List the volumes of a host."""
    state = equals("state", args.state.upper()) if args.state else ""
    wanted = all_of(args.filter, state, *label_filters(args.label))
    with dial(args) as server:
        request = pb.ListVolumesRequest(filter=wanted, show_deleted=args.deleted)
        request.show_usage = not args.quiet
        volumes = server.ask_all("ListVolumes", request, "volumes")
    show_all(
        args,
        "volumes",
        volumes,
        name=lambda volume: str(volume.id),
        table=lambda: volume_output.show_list(volumes, deleted=args.deleted),
    )


def show(args: Namespace) -> None:
    """Show a volume in detail, with the facts on the host that are not as recorded, or all."""
    facts, why_unknown = [], ""
    wish = None if args.remote else _wish(bare(args.name, "volumes"))
    with dial(args) as server:
        try:
            volume = get(server, args.name)
        except NotFound as error:
            raise (_not_attached(wish) if wish else error) from None
        if args.json:
            print(as_json(volume))
            return
        try:
            facts = present_or_wanted(probed(server, args.name).facts)
        except ZfsiloError as error:  # an older server, a host's token, a pool that does not answer
            why_unknown = error.message
    differing = noteworthy(facts)
    volume_output.show_headline(
        volume, different=not all_hold(facts), unknown=bool(differing or why_unknown)
    )
    volume_output.show_volume(volume, unit=volume_files.unit_of(wish.name) if wish else "")
    if shown := facts if args.facts else differing:
        print()
        show_facts("on the host", shown)
    if why_unknown:
        print(f"\ncannot probe the volume: {clean(why_unknown)}")
    elif not args.facts:
        print(f"\n{summary(facts)}: zfsiloctl volume show {bare(args.name, 'volumes')} --facts")


def _wish(name: str) -> VolumeFile | None:
    """Return the attachment that this host wants; None when it wants none, or its file is bad."""
    try:
        return volume_files.read(name)
    except InvalidArgument:
        return None  # `status` says so


def _not_attached(wish: VolumeFile) -> NotFound:
    """Return the error for a volume that this host wants and does not have."""
    place = f" at {wish.mount_path}" if wish.mount_path else ""
    return NotFound(
        f"{wish.name} should be {wish.state}{place}, as {volume_files.path_of(wish.name)} says, "
        f"and is not connected: systemctl status {volume_files.unit_of(wish.name)}",
        volume=wish.name,
    )


def probe(args: Namespace) -> int:
    """Probe every fact of a volume; one that differs from the records is a failure."""
    with dial(args) as server:
        response = probed(server, args.name)
    if args.json:
        print(as_json(response))
    elif not args.quiet:
        show_facts(bare(args.name, "volumes"), present_or_wanted(response.facts))
    return 0 if all_hold(response.facts) else FAILED


def present_or_wanted(facts: Iterable[Any]) -> list[Any]:
    """Return the facts worth a line: all but those that are absent as they should be."""
    return [fact for fact in facts if fact.wanted or fact.truth != pb.TRUTH_ABSENT]


def probed(server: Server, name: str) -> Any:
    """Return the facts of a volume, probed now."""
    request = pb.ProbeVolumeRequest(name=resource(name, "volumes"))
    return server.ask("ProbeVolume", request)


def stats(args: Namespace) -> None:
    """Show the space that a volume uses."""
    with dial(args) as server:
        request = pb.StatsVolumeRequest(name=resource(args.name, "volumes"))
        usage = server.ask("StatsVolume", request)
    if args.json:
        print(as_json(usage))
    else:
        volume_output.show_stats(bare(args.name, "volumes"), usage)


def create(args: Namespace) -> None:
    """Create a volume."""
    if args.from_snapshot and args.from_volume:
        raise InvalidArgument(
            "--from-snapshot and --from-volume cannot be combined",
            reason="USAGE",
            usage="zfsiloctl volume create --help",
        )
    if not (args.size or args.from_snapshot or args.from_volume):
        raise InvalidArgument(
            "name a SIZE; only a clone has that of its source by default",
            reason="USAGE",
            usage="zfsiloctl volume create --help",
        )
    volume = pb.Volume(
        capacity_bytes=parse_size(args.size or "0"),
        thin=not args.thick,
        mode=pb.MODE_BLOCK if args.block else pb.MODE_FILESYSTEM,
        properties=assignments(args.property, "property"),
        labels=assignments(args.label, "label"),
        hosts=host_ids(args.host),
        access_modes=[access_mode(mode) for mode in args.access_mode],
        encrypted=args.encrypt,
        **limits(args),
        tls=args.tls,
    )
    if args.transport:
        volume.transport = transport(args.transport)
    if args.from_snapshot:
        volume.source.snapshot = resource(args.from_snapshot, "snapshots")
    elif args.from_volume:
        volume.source.volume = resource(args.from_volume, "volumes")
    request = pb.CreateVolumeRequest(
        volume_id=bare(args.name, "volumes"), volume=volume, limit_bytes=parse_size(args.limit)
    )
    with dial(args) as server:
        check_tls(server, wanted=args.tls)
        change(args, server, "CreateVolume", request)
        say_unregistered(args, server, args.host)


def update(args: Namespace) -> None:
    """Change properties, labels, hosts or limits of a volume."""
    wanted = limits(args)
    if not (args.property or args.label or args.host or wanted):
        raise InvalidArgument(
            "nothing to change; pass --property, --label, --host or one of --limit-read-iops, "
            "--limit-write-iops, --limit-read-bytes, --limit-write-bytes",
            reason="USAGE",
            usage="zfsiloctl volume update --help",
        )
    with dial(args) as server:
        # Labels and hosts are replaced as a whole; the etag detects a change since they were read.
        volume = get(server, args.name)
        request = pb.UpdateVolumeRequest(
            volume=pb.Volume(name=volume.name), etag=args.etag or volume.etag
        )
        if args.property:
            values, inherited = changes(args.property, "property")
            request.volume.properties.update(values | dict.fromkeys(inherited, ""))
            request.update_mask.append("properties")
        if args.label:
            request.volume.labels.update(changed_labels(dict(volume.labels), args.label))
            request.update_mask.append("labels")
        if args.host:
            request.volume.hosts.extend(changed_hosts(list(volume.hosts), args.host))
            request.update_mask.append("hosts")
        for name, value in wanted.items():
            setattr(request.volume, name, value)
            request.update_mask.append(name)
        change(args, server, "UpdateVolume", request)
        say_unregistered(args, server, args.host)


def limits(args: Namespace) -> dict[str, int]:
    """Return the limits that the options name, by their fields in messages; 0 removes one."""
    wanted = {
        "limit_read_iops": args.limit_read_iops,
        "limit_write_iops": args.limit_write_iops,
        "limit_read_bytes": _rate(args.limit_read_bytes),
        "limit_write_bytes": _rate(args.limit_write_bytes),
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _rate(text: str | None) -> int | None:
    return None if text is None else parse_size(text)


def resize(args: Namespace) -> None:
    """Enlarge a volume to a size, or with + by a size."""
    size = parse_size(args.size.removeprefix("+"))
    with dial(args) as server:
        etag = args.etag
        if args.size.startswith("+"):
            volume = get(server, args.name)
            size, etag = size + volume.capacity_bytes, etag or volume.etag
        name = resource(args.name, "volumes")
        request = pb.UpdateVolumeRequest(
            volume=pb.Volume(name=name, capacity_bytes=size), etag=etag
        )
        request.update_mask.append("capacity_bytes")
        change(args, server, "UpdateVolume", request)
        if not (args.dry_run or args.no_wait or args.json or args.quiet):
            _say_who_has_to_grow(args, get(server, args.name))


def _say_who_has_to_grow(args: Namespace, volume: Any) -> None:
    """Name the hosts whose disk and filesystem have the former size until they are grown."""
    for publication in volume.publications:
        host = bare(publication.host, "hosts")
        grow = f"zfsiloctl volume grow {volume.id}"
        say(args, f"  {host} has the former size until, on {host}: {grow}")


def delete(args: Namespace) -> int:
    """Delete a volume, after confirmation."""
    name = bare(args.name, "volumes")
    request = pb.DeleteVolumeRequest(
        name=resource(name, "volumes"),
        etag=args.etag,
        dependents=pb.DEPENDENTS_KEEP if args.keep_dependents else pb.DEPENDENTS_UNSPECIFIED,
        record_only=args.record_only,
        unpublish=args.unpublish,
    )
    with dial(args) as server:
        method, uid = "DeleteVolume", get(server, name).uid
        if not (args.yes or args.dry_run):
            check = pb.DeleteVolumeRequest()
            check.CopyFrom(request)
            check.validate_only = True
            # It raises before the question is asked, and tells whether the data are destroyed.
            title = clean(send(server, method, check, follow=False).operation.title)
            if not confirmed(f"{title[0].upper()}{title[1:]}?"):
                return FAILED
        change(args, server, method, request)
        if not (args.dry_run or args.no_wait or args.json or args.quiet):
            _say_until_when(args, server, uid)
    return 0


def _say_until_when(args: Namespace, server: Server, uid: str) -> None:
    """Say until when a deleted volume can be restored, if it is in the trash."""
    request = pb.ListVolumesRequest(filter=equals("uid", uid), show_deleted=True)
    for volume in server.ask_all("ListVolumes", request, "volumes"):
        restore = f"zfsiloctl volume undelete {volume.id}"
        say(args, f"  it stays there until {at(volume.purge_time)} at least: {restore}")


def undelete(args: Namespace) -> None:
    """Restore a volume from the trash."""
    request = pb.UndeleteVolumeRequest(name=resource(args.name, "volumes"), uid=args.uid)
    with dial(args) as server:
        change(args, server, "UndeleteVolume", request)


def publish(args: Namespace) -> None:
    """Export a volume to a host."""
    request = pb.PublishVolumeRequest(
        name=resource(args.name, "volumes"),
        host=resource(args.host, "hosts"),
        readonly=args.readonly,
        etag=args.etag,
        force=args.force,
        tls=args.tls,
    )
    if args.access_mode:
        request.access_mode = access_mode(args.access_mode)
    if args.transport:
        request.transport = transport(args.transport)
    with dial(args) as server:
        check_tls(server, wanted=args.tls)
        change(args, server, "PublishVolume", request)


def unpublish(args: Namespace) -> None:
    """Stop exporting a volume to one host, or to all."""
    check_one_or_all(args.host, "HOST", everything=args.all)
    if args.grace is not None and not args.fence:
        raise InvalidArgument(
            "--grace needs --fence",
            reason="USAGE",
            usage="zfsiloctl volume unpublish --help",
        )
    request = pb.UnpublishVolumeRequest(
        name=resource(args.name, "volumes"),
        all_hosts=args.all,
        etag=args.etag,
        fence=args.fence,
    )
    if args.host:
        request.host = resource(args.host, "hosts")
    if args.grace is not None:
        request.grace = f"{args.grace:f}s"
    with dial(args) as server:
        change(args, server, "UnpublishVolume", request)


def sync(args: Namespace) -> int:
    """Repair differences between a host and the records of one volume, or of all."""
    check_one_or_all(args.name, "VOLUME", everything=args.all)
    with dial(args) as server:
        if args.name:
            request = pb.SyncVolumeRequest(name=resource(args.name, "volumes"))
            if not args.dry_run:
                change(args, server, "SyncVolume", request)
                return 0
            request.validate_only = True
            return _show_synced(args, server.ask("SyncVolume", request), {})
        if args.no_wait:
            raise InvalidArgument(
                "--no-wait cannot be combined with --all",
                reason="USAGE",
                usage="zfsiloctl volume sync --help",
            )
        server.read_s = server.change_s
        everything = pb.SyncVolumesRequest(validate_only=args.dry_run)
        response = server.ask("SyncVolumes", everything)
    return _show_synced(args, response, dict(response.complaints))


def _show_synced(args: Namespace, response: Any, complaints: dict[str, str]) -> int:
    """Print the differences, and fail when there are complaints."""
    if args.json:
        print(as_json(response))
    elif not args.quiet:
        for difference in response.differences:
            kind = "missing" if difference.wanted else "left over"
            repaired = "" if args.dry_run or difference.problem else ", repaired"
            why = f": {clean(difference.problem)}" if difference.problem else ""
            print(f"{difference.volume}: {kind}{repaired}: {clean(difference.fact)}{why}")
        if not response.differences:
            print("no differences")
    for name in sorted(complaints):
        sys.stderr.write(f"zfsiloctl: {name}: {clean(complaints[name])}\n")
    return FAILED if complaints else 0


def get(server: Server, name: str) -> Any:
    """Return a volume."""
    request = pb.GetVolumeRequest(name=resource(name, "volumes"))
    return server.ask("GetVolume", request)


def access_mode(word: str) -> Any:
    """Return the value of an access mode in messages."""
    return f"ACCESS_MODE_{word.upper()}"
