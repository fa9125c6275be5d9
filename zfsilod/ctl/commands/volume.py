"""`zfsiloctl volume`: what any host can tell of its volumes, and the verbs of a storage host."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import volume_pb2 as pb

from zfsilod.ctl import rpc_errors
from zfsilod.ctl.change import change
from zfsilod.ctl.client import Server, dial
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.filters import all_of, equals, labels_are
from zfsilod.ctl.output import volume as volume_output
from zfsilod.ctl.output.facts import all_hold, show_facts
from zfsilod.ctl.output.table import clean
from zfsilod.ctl.parse import assignments, bare, changes, is_removal, parse_size, resource
from zfsilod.model.errors import InvalidArgument, ZfsiloError
from zfsilod.model.sizes import show_size

if TYPE_CHECKING:
    from argparse import Namespace


def list_volumes(given: Namespace) -> None:
    """List the volumes that a host knows."""
    state = equals("state", given.state.upper()) if given.state else ""
    wanted = all_of(given.filter, state, *labels_are(given.label))
    with dial(given) as server:
        request = pb.ListVolumesRequest(filter=wanted, show_deleted=given.deleted)
        found = server.ask_all(server.api.volumes.ListVolumes, request, "volumes")
    rpc_errors.show_all(
        given,
        "volumes",
        found,
        name=lambda each: str(each.id),
        table=lambda: volume_output.show_list(found, deleted=given.deleted),
    )


def show(given: Namespace) -> None:
    """Show all that is known of a volume, and what is so on the host."""
    with dial(given) as server:
        found = get(server, given.name)
        if given.json:
            print(rpc_errors.as_json(found))
            return
        volume_output.show_volume(found)
        try:
            seen = probed(server, given.name)
        except ZfsiloError as error:  # an older server, a host's token, a pool that does not answer
            print(f"\nwhat is so on the host is not known: {clean(error.message)}")
            return
    print()
    show_facts("on the host", seen.facts)


def probe(given: Namespace) -> int:
    """Look at every fact that makes up a volume; one that is not as recorded is a failure."""
    with dial(given) as server:
        seen = probed(server, given.name)
    if given.json:
        print(rpc_errors.as_json(seen))
    elif not given.quiet:
        show_facts(bare(given.name, "volumes"), seen.facts)
    return 0 if all_hold(seen.facts) else FAILED


def probed(server: Server, name: str) -> Any:
    """Return the facts of a volume."""
    request = pb.ProbeVolumeRequest(name=resource(name, "volumes"))
    return server.ask(server.api.volumes.ProbeVolume, request)


def stats(given: Namespace) -> None:
    """Show how full a volume is."""
    with dial(given) as server:
        request = pb.StatsVolumeRequest(name=resource(given.name, "volumes"))
        found = server.ask(server.api.volumes.StatsVolume, request)
    if given.json:
        print(rpc_errors.as_json(found))
    else:
        volume_output.show_stats(bare(given.name, "volumes"), found)


def create(given: Namespace) -> None:
    """Make a volume."""
    if given.from_snapshot and given.from_volume:
        raise InvalidArgument(
            "--from-snapshot and --from-volume exclude each other",
            reason="USAGE",
            usage="zfsiloctl volume create --help",
        )
    volume = pb.Volume(
        capacity_bytes=parse_size(given.size),
        thin=not given.thick,
        mode=pb.MODE_BLOCK if given.block else pb.MODE_FILESYSTEM,
        properties=assignments(given.property, "property"),
        labels=assignments(given.label, "label"),
        hosts=hosts(given.host),
        access_modes=[access_mode(each) for each in given.access_mode],
    )
    if given.from_snapshot:
        volume.source.snapshot = resource(given.from_snapshot, "snapshots")
    elif given.from_volume:
        volume.source.volume = resource(given.from_volume, "volumes")
    request = pb.CreateVolumeRequest(
        volume_id=bare(given.name, "volumes"), volume=volume, limit_bytes=parse_size(given.limit)
    )
    with dial(given) as server:
        change(given, server, server.changes.volumes.CreateVolume, request)


def update(given: Namespace) -> None:
    """Change properties, labels or hosts; what is not named stays as it is."""
    if not (given.property or given.label or given.host):
        raise InvalidArgument(
            "nothing to change: name -o, -l or --host",
            reason="USAGE",
            usage="zfsiloctl volume update --help",
        )
    with dial(given) as server:
        # Labels and hosts are replaced as a whole: the etag keeps out a change in between.
        now = get(server, given.name)
        request = pb.UpdateVolumeRequest(
            volume=pb.Volume(name=now.name), etag=given.etag or now.etag
        )
        if given.property:
            values, inherited = changes(given.property, "property")
            request.volume.properties.update(values | dict.fromkeys(inherited, ""))
            request.update_mask.paths.append("properties")
        if given.label:
            request.volume.labels.update(changed(dict(now.labels), given.label))
            request.update_mask.paths.append("labels")
        if given.host:
            request.volume.hosts.extend(changed_hosts(list(now.hosts), given.host))
            request.update_mask.paths.append("hosts")
        change(given, server, server.changes.volumes.UpdateVolume, request)


def resize(given: Namespace) -> None:
    """Give a volume another size, or with + that much more."""
    size = parse_size(given.size.removeprefix("+"))
    with dial(given) as server:
        etag = given.etag
        if given.size.startswith("+"):
            now = get(server, given.name)
            size, etag = size + now.capacity_bytes, etag or now.etag
        name = resource(given.name, "volumes")
        request = pb.UpdateVolumeRequest(
            volume=pb.Volume(name=name, capacity_bytes=size), etag=etag
        )
        request.update_mask.paths.append("capacity_bytes")
        change(given, server, server.changes.volumes.UpdateVolume, request)


def delete(given: Namespace) -> int:
    """Destroy a volume, after a question on a terminal."""
    name = bare(given.name, "volumes")
    with dial(given) as server:
        if not (given.yes or given.dry_run) and not _sure(server, name):
            return FAILED
        request = pb.DeleteVolumeRequest(name=resource(name, "volumes"), etag=given.etag)
        if given.keep_dependents:
            request.dependents = pb.DEPENDENTS_KEEP
        change(given, server, server.changes.volumes.DeleteVolume, request)
    return 0


def undelete(given: Namespace) -> None:
    """Take a volume out of the trash."""
    request = pb.UndeleteVolumeRequest(name=resource(given.name, "volumes"), uid=given.uid)
    with dial(given) as server:
        change(given, server, server.changes.volumes.UndeleteVolume, request)


def publish(given: Namespace) -> None:
    """Export a volume to a host."""
    request = pb.PublishVolumeRequest(
        name=resource(given.name, "volumes"),
        host=resource(given.host, "hosts"),
        readonly=given.readonly,
        etag=given.etag,
        force=given.force,
    )
    if given.access_mode:
        request.access_mode = access_mode(given.access_mode)
    with dial(given) as server:
        change(given, server, server.changes.volumes.PublishVolume, request)


def unpublish(given: Namespace) -> None:
    """Take a volume back from one host, or from all."""
    one_or_all(given.host, "HOST", everything=given.all)
    if given.grace is not None and not given.fence:
        raise InvalidArgument(
            "--grace is for --fence: without it no session is ended",
            reason="USAGE",
            usage="zfsiloctl volume unpublish --help",
        )
    request = pb.UnpublishVolumeRequest(
        name=resource(given.name, "volumes"),
        all_hosts=given.all,
        etag=given.etag,
        fence=given.fence,
    )
    if given.host:
        request.host = resource(given.host, "hosts")
    if given.grace is not None:
        request.grace.FromTimedelta(timedelta(seconds=given.grace))
    with dial(given) as server:
        change(given, server, server.changes.volumes.UnpublishVolume, request)


def sync(given: Namespace) -> int:
    """Make a host agree with what is recorded of one volume, or of all."""
    one_or_all(given.name, "VOLUME", everything=given.all)
    with dial(given) as server:
        if given.name:
            request = pb.SyncVolumeRequest(name=resource(given.name, "volumes"))
            if not given.dry_run:
                change(given, server, server.changes.volumes.SyncVolume, request)
                return 0
            request.validate_only = True
            found: Any = server.ask(server.api.volumes.SyncVolume, request)
            return _show_synced(given, found, {})
        if given.no_wait:
            raise InvalidArgument(
                "--no-wait is for one volume", reason="USAGE", usage="zfsiloctl volume sync --help"
            )
        server.read_s = server.change_s
        everything = pb.SyncVolumesRequest(validate_only=given.dry_run)
        found = server.ask(server.api.volumes.SyncVolumes, everything)
    return _show_synced(given, found, dict(found.complaints))


def _show_synced(given: Namespace, answer: Any, complaints: dict[str, str]) -> int:
    """Print what differs or, after a repair, differed; one complaint is enough to fail."""
    if given.json:
        print(rpc_errors.as_json(answer))
    elif not given.quiet:
        _show_differences(answer.differences, dry_run=given.dry_run)
    for name in sorted(complaints):
        sys.stderr.write(f"zfsiloctl: {name}: {clean(complaints[name])}\n")
    return FAILED if complaints else 0


def _show_differences(differences: Any, *, dry_run: bool) -> None:
    for each in differences:
        what = "missing" if each.wanted else "too much"
        repaired = "" if dry_run or each.problem else ", repaired"
        why = f": {clean(each.problem)}" if each.problem else ""
        print(f"{each.volume}: {what}{repaired}: {clean(each.fact)}{why}")
    if not differences:
        print("all is as recorded")


def get(server: Server, name: str) -> Any:
    """Return a volume as it is now."""
    request = pb.GetVolumeRequest(name=resource(name, "volumes"))
    return server.ask(server.api.volumes.GetVolume, request)


def access_mode(word: str) -> Any:
    """Return an access mode as the wire has it."""
    return pb.AccessMode.Value(f"ACCESS_MODE_{word.upper()}")


def hosts(names: list[str]) -> list[str]:
    """Return hosts by id, each once."""
    return list(dict.fromkeys(bare(name, "hosts") for name in names))


def changed(now: dict[str, str], texts: list[str]) -> dict[str, str]:
    """Return labels with NAME=VALUE and NAME- arguments applied."""
    values, removed = changes(texts, "label")
    return {name: value for name, value in (now | values).items() if name not in removed}


def changed_hosts(now: list[str], texts: list[str]) -> list[str]:
    """Return hosts with HOST and HOST- arguments applied."""
    removed = [text[:-1] for text in texts if is_removal(text)]
    added = [text for text in texts if not is_removal(text)]
    return [each for each in hosts([*now, *added]) if each not in removed]


def one_or_all(one: str | None, what: str, *, everything: bool) -> None:
    """Refuse neither, and both."""
    if bool(one) == everything:
        both = ", not both" if one else ""
        raise InvalidArgument(f"name a {what}, or --all{both}", reason="ONE_OR_ALL")


def _sure(server: Server, name: str) -> bool:
    check_terminal(f"{name} and its data")
    size = show_size(get(server, name).capacity_bytes)
    return confirmed(f"Destroy the volume {name} ({size}) and all its data?")


def check_terminal(what: str) -> None:
    """Refuse to destroy what nobody can be asked about."""
    if not sys.stdin.isatty():
        raise InvalidArgument(
            f"nobody is here to confirm that {what} shall be destroyed: add --yes",
            reason="UNCONFIRMED",
        )


def confirmed(question: str) -> bool:
    """Ask a question on the terminal; anything but yes changes nothing."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    sure = sys.stdin.readline().strip().lower() in ("y", "yes")
    if not sure:
        sys.stderr.write("zfsiloctl: nothing was changed\n")
    return sure
