/** The objects of org.zfsilo1 with the names of their properties; dbus/org.zfsilo1.xml explains them. */
import type { Variant } from "./bus";

export interface Publication {
    initiator: string;
    transport: string;
    access_mode: string;
    readonly: boolean;
    epoch: number;
    published_by: string;
    created_at: number;
}

export interface Volume {
    path: string;
    Id: string;
    Uid: string;
    CapacityBytes: number;
    State: string;
    Mode: string;
    Thin: boolean;
    Encrypted: boolean;
    LimitReadIops: number;
    LimitWriteIops: number;
    LimitReadBytes: number;
    LimitWriteBytes: number;
    Dataset: string;
    Properties: Record<string, string>;
    Labels: Record<string, string>;
    Hosts: string[];
    AccessModes: string[];
    Filesystem: [state: string, type: string, uuid: string];
    Publications: Record<string, Publication>;
    Server: string;
    ServerVolume: string;
    Restore: string;
    StagingPath: string;
    Mounts: Record<string, { readonly: boolean }>;
    Conditions: string[];
    ConditionReasons: string[];
    Operation: string;
    Etag: string;
    CreatedAt: number;
    UpdatedAt: number;
}

export interface Snapshot {
    path: string;
    Id: string;
    Volume: string;
    SizeBytes: number;
    Group: string;
    Etag: string;
    CreatedAt: number;
}

export interface Policy {
    path: string;
    Id: string;
    Calendar: string;
    Grid: string;
    Selector: Record<string, string>;
    Grouped: boolean;
    MaxDelaySeconds: number;
    RunAt: number;
    SucceededAt: number;
    Failures: string[];
    Etag: string;
}

export interface Host {
    path: string;
    Id: string;
    Iqn: string;
    Nqn: string;
    Addresses: string[];
    MaxAttachments: number;
    Authority: string;
    Etag: string;
    CreatedAt: number;
}

export interface Operation {
    path: string;
    Id: string;
    Kind: string;
    Subject: string;
    Title: string;
    Caller: string;
    State: string;
    Error: [name: string, message: string, reason: string, facts: Record<string, string>];
    Progress: number;
    Step: string;
    Actions: [way: string, description: string, status: string][];
    CreatedAt: number;
    EndedAt: number;
}

export type Properties = Record<string, unknown>;

/** Unpacks the variants of an object's properties, and those within a{sa{sv}}. */
export function unpack(packed: Record<string, Variant>): Properties {
    return Object.fromEntries(
        Object.entries(packed).map(([name, { t, v }]) => [
            name,
            t === "a{sa{sv}}" ? unpackEach(v as Record<string, Record<string, Variant>>) : v,
        ]),
    );
}

function unpackEach(rows: Record<string, Record<string, Variant>>): Record<string, Properties> {
    return Object.fromEntries(Object.entries(rows).map(([key, row]) => [key, unpack(row)]));
}

/** Returns the path of an object: its id as sd_bus_path_encode(3) writes it. */
export function pathOf(kind: string, id: string): string {
    const escaped = id.replace(
        /[^A-Za-z0-9]|^[0-9]/g,
        (sign) => `_${sign.charCodeAt(0).toString(16).padStart(2, "0")}`,
    );
    return `/org/zfsilo1/${kind}/${escaped}`;
}

/** Returns the id of an object from its path. */
export function idOf(path: string): string {
    const escaped = path.slice(path.lastIndexOf("/") + 1);
    return escaped.replace(/_([0-9a-f]{2})/g, (_match, code: string) => String.fromCharCode(parseInt(code, 16)));
}

const ENDED = ["DONE", "ROLLED_BACK", "ABANDONED", "NEEDS_REPAIR", "PLANNED"];

/** Whether an operation makes no progress now: it has ended, is only planned, or needs repair. */
export function isSettled(operation: Operation): boolean {
    return ENDED.includes(operation.State);
}
