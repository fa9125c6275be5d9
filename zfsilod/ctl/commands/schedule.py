"""`zfsiloctl schedule`: policies that take snapshots by a timer, and delete old ones."""

from __future__ import annotations

from zfsilod.ctl import change as changes
from zfsilod.ctl import messages as pb
from zfsilod.ctl.change import change, send, set_fields, show_run
from zfsilod.ctl.client import dial
from zfsilod.ctl.output.messages import as_json, show_all
from zfsilod.ctl.output.table import show_block, show_table
from zfsilod.ctl.output.volume import commas, pairs
from zfsilod.ctl.parse import assignments, bare, changed_labels, resource
from zfsilod.ctl.times import age, when
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from zfsilod.ctl.client import Server

FIELDS = ["calendar", "grid", "selector", "grouped", "max_delay_seconds"]
LIST = ("NAME", "CALENDAR", "KEEP", "LABELS", "VOLUMES", "LAST RUN", "FAILURES")


def create(args: Namespace) -> None:
    """Create a policy, or with --update change one to these values."""
    name = bare(args.name, "snapshotPolicies")
    policy = pb.SnapshotPolicy(
        calendar=args.calendar,
        grid=args.keep,
        selector=assignments(args.label, "label"),
        grouped=args.group,
        max_delay_seconds=args.delay or 0,
    )
    created = pb.CreateSnapshotPolicyRequest(policy_id=name, policy=policy)
    changed = pb.SnapshotPolicy()
    changed.CopyFrom(policy)
    changed.name = resource(name, "snapshotPolicies")
    updated = pb.UpdateSnapshotPolicyRequest(policy=changed, update_mask=FIELDS, select_all=True)
    with dial(args) as server:
        changes.create(
            args,
            server,
            ("CreateSnapshotPolicy", created),
            ("UpdateSnapshotPolicy", updated),
            _note,
        )


def list_policies(args: Namespace) -> None:
    """List the policies."""
    request = pb.ListSnapshotPoliciesRequest(filter=args.filter or "")
    with dial(args) as server:
        policies = server.ask_all("ListSnapshotPolicies", request, "policies")
    rows = [
        [
            policy.id,
            policy.calendar,
            policy.grid,
            pairs(policy.selector) or "(all)",
            str(len(policy.volumes)),
            age(policy.run_time) or "never",
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
    show_block(
        f"schedule {policy.id}",
        [
            ("Calendar", f"{policy.calendar}{delay}"),
            ("Keep", policy.grid),
            ("Labels", pairs(policy.selector) or "(all volumes)"),
            ("Snapshots", "one group" if policy.grouped else "one of each volume"),
            ("Volumes", commas(bare(volume, "volumes") for volume in policy.volumes)),
            ("Timer", f"zfsilo-snapshot@{policy.id}.timer"),
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
    values = {"calendar": args.calendar, "grid": args.keep, "max_delay_seconds": args.delay}
    if args.group or args.single:
        values["grouped"] = args.group
    with dial(args) as server:
        policy = pb.SnapshotPolicy(name=resource(args.name, "snapshotPolicies"))
        request = pb.UpdateSnapshotPolicyRequest(policy=policy, etag=args.etag)
        set_fields(request, request.policy, values)
        if args.label:  # replaced as a whole; the etag detects a change since they were read
            current = _get(server, args.name)
            labels = changed_labels(dict(current.selector), args.label)
            request.policy.selector.update(labels)
            request.etag = args.etag or current.etag
            request.update_mask.append("selector")
        if not request.update_mask:
            raise InvalidArgument(
                "nothing to change; pass --calendar, --keep, --label, --group, --single or --delay",
                reason="USAGE",
                usage="zfsiloctl schedule update --help",
            )
        change(args, server, "UpdateSnapshotPolicy", request, _note)


def delete(args: Namespace) -> None:
    """Delete a policy, and keep its snapshots."""
    name = resource(args.name, "snapshotPolicies")
    request = pb.DeleteSnapshotPolicyRequest(name=name, etag=args.etag)
    with dial(args) as server:
        change(args, server, "DeleteSnapshotPolicy", request)


def run(args: Namespace) -> None:
    """Take the snapshots of a policy now, as its timer does."""
    request = pb.RunSnapshotPolicyRequest(name=resource(args.name, "snapshotPolicies"))
    request.validate_only = args.dry_run
    with dial(args) as server:
        answer = send(server, "RunSnapshotPolicy", request, follow=False)
    show_run(args, answer, bare(args.name, "snapshotPolicies"))


def _note(answer: Any) -> str:
    """Return a hint when a policy selects nothing: a label may be misspelt."""
    policy = answer.policy
    selects = not answer.HasField("policy") or policy.volumes
    return "" if selects else changes.selects_none(policy.id)


def _get(server: Server, name: str) -> Any:
    request = pb.GetSnapshotPolicyRequest(name=resource(name, "snapshotPolicies"))
    return server.ask("GetSnapshotPolicy", request)
