/** What the page knows about this host: objects kept current by signals, and its status. */
import { useSyncExternalStore } from "react";
import { Bus, Failure, ROOT, type Interfaces, type Options, type Signal, type Variant } from "./bus";
import {
    isSettled, unpack,
    type Host, type Operation, type Policy, type Properties, type Snapshot, type Volume,
} from "./objects";

export interface Status {
    root: string;
    figures: Record<string, number>;
    states: Record<string, number>;
    attention: [subject: string, sentence: string, command: string][];
}

export interface State {
    ready: boolean;
    failure: Failure | null;
    volumes: Volume[];
    snapshots: Snapshot[];
    policies: Policy[];
    hosts: Host[];
    operations: Operation[]; // that have not ended
    status: Status | null;
    version: string;
}

/** A change: a method with its arguments, the last of which are its options. */
export interface Change {
    path?: string; // default: the manager
    on: "Manager" | "Volume" | "Snapshot" | "SnapshotPolicy" | "Host" | "Operation";
    method: string;
    type?: string; // of the arguments before the options
    args?: unknown[];
    options?: Options;
}

// Conditions change without a signal, and without administrative access no signal arrives.
const REFRESH_MS = 10_000;
const AFTER_SIGNAL_MS = 1000; // so that many operations are followed by one look at the host
const PROGRESS_MS = 500;
const FOLLOWED = 20; // operations whose progress is read

class Silo {
    private readonly bus = new Bus();
    private readonly objects = new Map<string, { kind: string; values: Properties }>();
    private readonly listeners = new Set<() => void>();
    private readonly timers = new Map<string, number>();
    private timer = 0; // of the next reading
    private isReading = false;
    private isStale = false; // what is being read
    private missed: Signal[] = []; // since that reading began
    state: State = {
        ready: false, failure: null, status: null, version: "",
        volumes: [], snapshots: [], policies: [], hosts: [], operations: [],
    };

    start(): void {
        this.bus.onSignal = (signal) => this.receive(signal);
        this.bus.onOwner = (present) => present && this.state.ready && this.refresh();
        this.bus.onClose = (failure) => this.publish({ failure });
        window.setInterval(() => document.hidden || this.refresh(), REFRESH_MS);
        document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
        this.refresh();
    }

    readonly subscribe = (listener: () => void): (() => void) => {
        this.listeners.add(listener);
        return () => this.listeners.delete(listener);
    };

    /** Reads everything soon; requests that come together are one. */
    refresh(delay = 0): void {
        if (this.isReading) this.isStale = true;
        else if (!this.timer) this.timer = window.setTimeout(() => void this.read(), delay);
    }

    /** Reads everything: first the objects, since the status probes the host and takes longer. */
    private async read(): Promise<void> {
        Object.assign(this, { timer: 0, isReading: true, isStale: false, missed: [] });
        try {
            const managed = await this.bus.managed();
            this.objects.clear();
            for (const [path, interfaces] of Object.entries(managed)) this.add(path, interfaces);
            for (const signal of this.missed) this.apply(signal);
            this.publish({ ready: true, failure: null });
            await this.readStatus();
        } catch (error) {
            this.publish({ failure: Failure.from(error) });
        } finally {
            this.isReading = false;
            if (this.isStale) this.refresh(AFTER_SIGNAL_MS);
        }
    }

    async call(path: string, on: string, method: string, type = "", ...args: unknown[]) {
        return this.bus.call(path, on, method, type, ...args);
    }

    /** Starts a change and returns the path of its (first) operation; `planOnly`: a dry run. */
    async submit(change: Change, planOnly = false): Promise<string> {
        const options = { ...change.options, ...(planOnly && { validate_only: { t: "b", v: true } }) };
        const args = [...(change.args ?? []), options];
        const type = `${change.type ?? ""}a{sv}`;
        const body = await this.bus.call(change.path ?? ROOT, change.on, change.method, type, ...args);
        if (!planOnly) this.refresh();
        const [path] = [body[0]].flat();
        return typeof path === "string" ? path : "";
    }

    async operation(path: string): Promise<Operation> {
        const values = unpack(await this.bus.properties(path, "Operation"));
        return { path, ...values } as Operation;
    }

    /** Returns the operations since a time, the newest first, at most so many. */
    async history(since: number, subject: string, most: number): Promise<Operation[]> {
        const options: Options = { since: { t: "t", v: since }, page_size: { t: "u", v: 1000 } };
        if (subject) options["subject"] = { t: "s", v: subject };
        const paths: string[] = [];
        for (let token = ""; ; ) {
            const page = { ...options, page_token: { t: "s", v: token } };
            const body = await this.bus.call(ROOT, "Manager", "ListOperations", "a{sv}", page);
            const [rows, next] = body as [[string][], string];
            paths.push(...rows.map(([path]) => path));
            if (!next) break;
            token = next;
        }
        const newest = paths.slice(-most).reverse();
        return Promise.all(newest.map((path) => this.operation(path)));
    }

    private async readStatus(): Promise<void> {
        const [root, figures, states, attention] = await this.bus.call(ROOT, "Manager", "GetStatus");
        const version = unpack(await this.bus.properties(ROOT, "Manager"))["Version"];
        this.publish({ status: { root, figures, states, attention } as Status, version: String(version) });
    }

    private receive(signal: Signal): void {
        if (this.isReading) this.missed.push(signal);
        this.apply(signal);
        if (signal[2] === "OperationFinished") this.refresh(AFTER_SIGNAL_MS);
        this.publish({});
    }

    private apply([path, , name, body]: Signal): void {
        if (name === "InterfacesAdded") this.add(...(body as [string, Interfaces]));
        else if (name === "InterfacesRemoved") this.objects.delete(body[0] as string);
        else if (name === "PropertiesChanged") {
            const values = this.objects.get(path)?.values;
            if (values) Object.assign(values, unpack(body[1] as Record<string, Variant>));
        }
    }

    private add(path: string, interfaces: Interfaces): void {
        for (const [name, packed] of Object.entries(interfaces)) {
            const kind = name.split(".").pop() ?? "";
            this.objects.set(path, { kind, values: unpack(packed) });
        }
    }

    private publish(change: Partial<State>): void {
        this.state = {
            ...this.state,
            volumes: this.all<Volume>("Volume"),
            snapshots: this.all<Snapshot>("Snapshot"),
            policies: this.all<Policy>("SnapshotPolicy"),
            hosts: this.all<Host>("Host"),
            operations: this.all<Operation>("Operation"),
            ...change,
        };
        this.state.operations.slice(0, FOLLOWED).forEach((operation) => this.follow(operation));
        for (const listener of this.listeners) listener();
    }

    private all<T extends { Id: string }>(kind: string): T[] {
        const found: T[] = [];
        for (const [path, object] of this.objects) {
            if (object.kind === kind) found.push({ path, ...object.values } as unknown as T);
        }
        return found.sort((a, b) => (a.Id < b.Id ? -1 : 1));
    }

    /** Reads the progress of a running operation, of which no signal is sent. */
    private follow(operation: Operation): void {
        const { path } = operation;
        if (isSettled(operation) || this.timers.has(path)) return;
        this.timers.set(path, window.setTimeout(() => void this.readProgress(path), PROGRESS_MS));
    }

    private async readProgress(path: string): Promise<void> {
        const object = this.objects.get(path);
        try {
            const operation = await this.operation(path);
            if (object) object.values = { ...operation };
            if (isSettled(operation)) this.refresh();
        } catch (error) {
            this.publish({ failure: Failure.from(error) });
        } finally {
            this.timers.delete(path);
        }
        this.publish({});
    }
}

export const silo = new Silo();

export function useSilo(): State {
    return useSyncExternalStore(silo.subscribe, () => silo.state);
}
