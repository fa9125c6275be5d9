"""`zfsiloctl volume replicate`, and `zfsiloctl replication`: volumes are sent to another server."""

from __future__ import annotations

from zfsilod.ctl import change as changes
from zfsilod.ctl import messages as pb
from zfsilod.ctl.change import change, send, set_fields, show_run
from zfsilod.ctl.client import dial
from zfsilod.ctl.output.messages import as_json, show_all
from zfsilod.ctl.output.table import show_block, show_table
from zfsilod.ctl.output.volume import commas, pairs
from zfsilod.ctl.parse import (
    assignments,
    bare,
    changed_labels,
    is_removal,
    resource,
)
from zfsilod.ctl.times import age, when
from zfsilod.model import deadlines
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.sizes import show_size

if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from zfsilod.ctl.client import Server

FIELDS = ["peer", "calendar", "selector", "volumes", "bytes_per_second", "max_delay_seconds"]
LIST = ("NAME", "TO", "CALENDAR", "SELECTS", "VOLUMES", "LAST RUN", "FAILURES")
POLICIES = "replicationPolicies"


def replicate(args: Namespace) -> None:
    """Send a snapshot of a volume to another server, or end that."""
    name = resource(args.name, "volumes")
    with dial(args) as server:
        if args.end:
            request = pb.EndReplicationRequest(name=name, peer=args.to)
            change(args, server, "EndReplication", request)
            return
        request = pb.ReplicateVolumeRequest(name=name, peer=args.to)
        if args.rate is not None:
            request.bytes_per_second = args.rate
        change(args, server, "ReplicateVolume", request)


def create(args: Namespace) -> None:
    """Create a policy, or with --update change one to these values."""
    name = bare(args.name, POLICIES)
    policy = pb.ReplicationPolicy(
        peer=args.to,
        calendar=args.calendar,
        selector=assignments(args.label, "label"),
        volumes=[resource(volume, "volumes") for volume in args.volume],
        bytes_per_second=args.rate,
        max_delay_seconds=args.delay or 0,
    )
    created = pb.CreateReplicationPolicyRequest(policy_id=name, policy=policy)
    changed = pb.ReplicationPolicy()
    changed.CopyFrom(policy)
    changed.name = resource(name, POLICIES)
    updated = pb.UpdateReplicationPolicyRequest(policy=changed, update_mask=FIELDS, select_all=True)
    with dial(args) as server:
        changes.create(
            args,
            server,
            ("CreateReplicationPolicy", created),
            ("UpdateReplicationPolicy", updated),
            _note,
        )


def list_policies(args: Namespace) -> None:
    """List the policies."""
    request = pb.ListReplicationPoliciesRequest(filter=args.filter or "")
    with dial(args) as server:
        policies = server.ask_all("ListReplicationPolicies", request, "policies")
    rows = [
        [
            policy.id,
            policy.peer,
            policy.calendar,
            _selects(policy),
            str(len(policy.selected)),
            "running" if policy.running else age(policy.run_time) or "never",
            str(len(policy.failures) or ""),
        ]
        for policy in policies
    ]
    show_all(
        args,
        "policies",
        policies,
        name=lambda policy: str(policy.id),
        table=lambda: show_table(LIST, rows),
    )


def show(args: Namespace) -> None:
    """Show a policy."""
    with dial(args) as server:
        policy = _get(server, args.name)
    if args.json:
        print(as_json(policy))
        return
    delay = f", up to {policy.max_delay_seconds} s later" if policy.max_delay_seconds else ""
    rate = policy.bytes_per_second
    show_block(
        f"replication {policy.id}",
        [
            ("To", policy.peer),
            ("Calendar", f"{policy.calendar}{delay}"),
            ("Selects", _selects(policy)),
            ("Volumes", commas(bare(volume, "volumes") for volume in policy.selected)),
            ("Rate", f"at most {show_size(rate)} a second" if rate else ""),
            ("Timer", f"zfsilo-replicate@{policy.id}.timer"),
            ("Running", "yes" if policy.running else ""),
            ("Last run", when(policy.run_time)),
            ("Last success", when(policy.success_time)),
            *(("Failure", failure) for failure in policy.failures),
            ("Etag", policy.etag),
            ("Created", when(policy.create_time)),
            ("Updated", when(policy.update_time)),
        ],
    )


def update(args: Namespace) -> None:
    """Change the named values of a policy."""
    values = {
        "peer": args.to,
        "calendar": args.calendar,
        "bytes_per_second": args.rate,
        "max_delay_seconds": args.delay,
    }
    with dial(args) as server:
        policy = pb.ReplicationPolicy(name=resource(args.name, POLICIES))
        request = pb.UpdateReplicationPolicyRequest(policy=policy, etag=args.etag)
        set_fields(request, request.policy, values)
        if args.label or args.volume:  # replaced as a whole; the etag detects a change since
            current = _get(server, args.name)
            request.etag = args.etag or current.etag
            labels = changed_labels(dict(current.selector), args.label)
            volumes = _changed_volumes(current.volumes, args.volume)
        if args.label:
            request.policy.selector.update(labels)
            request.update_mask.append("selector")
        if args.volume:
            request.policy.volumes.extend(volumes)
            request.update_mask.append("volumes")
        if not request.update_mask:
            raise InvalidArgument(
                "nothing to change; pass --to, --calendar, --label, --volume, --rate or --delay",
                reason="USAGE",
                usage="zfsiloctl replication update --help",
            )
        change(args, server, "UpdateReplicationPolicy", request, _note)


def delete(args: Namespace) -> None:
    """Delete a policy, and keep its replicas."""
    name = resource(args.name, POLICIES)
    request = pb.DeleteReplicationPolicyRequest(name=name, etag=args.etag)
    with dial(args) as server:
        change(args, server, "DeleteReplicationPolicy", request)


def run(args: Namespace) -> None:
    """Replicate the volumes of a policy now, as its timer does, and wait for a day at most."""
    request = pb.RunReplicationPolicyRequest(name=resource(args.name, POLICIES))
    request.validate_only = args.dry_run
    with dial(args) as server:
        server.change_s = args.timeout or deadlines.LONGEST_S
        answer = send(server, "RunReplicationPolicy", request, follow=False)
    show_run(args, answer, bare(args.name, POLICIES))


def _selects(policy: Any) -> str:
    """Return which volumes a policy selects, in words."""
    named = commas(bare(volume, "volumes") for volume in policy.volumes)
    return commas(text for text in (pairs(policy.selector), named) if text) or "(all)"


def _changed_volumes(volumes: list[str], texts: list[str]) -> list[str]:
    """Return resource names with VOLUME and VOLUME- arguments applied."""
    removed = {resource(text[:-1], "volumes") for text in texts if is_removal(text)}
    added = [resource(text, "volumes") for text in texts if not is_removal(text)]
    return [name for name in dict.fromkeys([*volumes, *added]) if name not in removed]


def _note(answer: Any) -> str:
    """Return a hint when a policy selects nothing: a label may be misspelt."""
    policy = answer.policy
    selects = not answer.HasField("policy") or policy.selected
    return "" if selects else changes.selects_none(policy.id)


def _get(server: Server, name: str) -> Any:
    request = pb.GetReplicationPolicyRequest(name=resource(name, POLICIES))
    return server.ask("GetReplicationPolicy", request)
