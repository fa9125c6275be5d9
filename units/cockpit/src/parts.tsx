/** Small parts that several pages share. */
import {
    Alert, Card, CardBody, CardHeader, CardTitle, ClipboardCopy, DescriptionList,
    DescriptionListDescription, DescriptionListGroup, DescriptionListTerm, EmptyState, Label, MenuToggle,
    Progress,
} from "@patternfly/react-core";
import EllipsisIcon from "@patternfly/react-icons/dist/esm/icons/ellipsis-v-icon";
import { ActionsColumn, type IAction } from "@patternfly/react-table";
import { useEffect, useState, type ReactNode } from "react";
import { Failure } from "./bus";
import { capitalised, word } from "./format";
import { idOf, type Operation } from "./objects";

type Colour = "green" | "red" | "orange" | "blue" | "grey" | "teal";

const COLOURS: Record<string, Colour> = {
    CREATED: "grey", PUBLISHED: "blue", CONNECTED: "teal", STAGED: "teal", MOUNTED: "teal",
    RUNNING: "blue", WAITING: "blue", FAILED: "orange", DONE: "green", ROLLED_BACK: "orange",
    NEEDS_REPAIR: "red", ABANDONED: "grey", PLANNED: "grey",
    PENDING: "grey", UNCHANGED: "grey", STARTED: "blue", REVERTED: "orange",
};

export function StateLabel({ state }: { state: string }) {
    return <Label isCompact color={COLOURS[state] ?? "grey"}>{word(state)}</Label>;
}

/** Text of zfsilo, with the commands that it has in backquotes as code. */
export function Prose({ text }: { text: string }) {
    const parts = text.split("`");
    return parts.map((part, index) => (index % 2 ? <code key={index}>{part}</code> : part));
}

export function FailureAlert({ failure }: { failure: Failure }) {
    return (
        <Alert isInline variant="danger" title={<Prose text={failure.message} />}>
            {failure.step && <p>While: {failure.step}</p>}
            {(failure.reason || failure.code) && <p>Reason: {failure.reason || failure.code}</p>}
        </Alert>
    );
}

/** Returns why an operation failed, in its words; null: it did not. */
export function failureOf(operation: Operation): Failure | null {
    const [name, message, reason, facts] = operation.Error;
    return message ? new Failure(name, message, reason, facts["step"] ?? "") : null;
}

export function OperationProgress({ operation }: { operation: Operation }) {
    return (
        <Progress
            value={operation.Progress}
            title={operation.Title}
            helperText={operation.Step || word(operation.State)}
            size="sm"
        />
    );
}

export function Section(props: { title: string; actions?: ReactNode; children: ReactNode }) {
    return (
        <Card component="section" aria-label={props.title}>
            <CardHeader {...(props.actions ? { actions: { actions: props.actions } } : {})}>
                <CardTitle component="h2">{props.title}</CardTitle>
            </CardHeader>
            <CardBody>{props.children}</CardBody>
        </Card>
    );
}

export function Nothing({ title }: { title: string }) {
    return <EmptyState titleText={title} headingLevel="h3" variant="xs" />;
}

export function Command({ text }: { text: string }) {
    return (
        <ClipboardCopy isReadOnly isCode hoverTip="Copy" clickTip="Copied" textAriaLabel="Command" variant="inline-compact">
            {text}
        </ClipboardCopy>
    );
}

/** A list of terms; rows without a value are left out. */
export function Terms({ rows }: { rows: readonly (readonly [string, ReactNode])[] }) {
    return (
        <DescriptionList isHorizontal isCompact horizontalTermWidthModifier={{ default: "12ch", md: "22ch" }}>
            {rows.filter(([, value]) => value !== "" && value !== null).map(([term, value]) => (
                <DescriptionListGroup key={term}>
                    <DescriptionListTerm>{capitalised(term)}</DescriptionListTerm>
                    <DescriptionListDescription className="zs-wrap">{value}</DescriptionListDescription>
                </DescriptionListGroup>
            ))}
        </DescriptionList>
    );
}

export function VolumeLink({ id }: { id: string }) {
    return <a href={`#/volumes/${encodeURIComponent(id)}`}>{id}</a>;
}

export function OperationLink({ path, children }: { path: string; children: ReactNode }) {
    return <a href={`#/operations/${idOf(path)}`}>{children}</a>;
}

/** A menu of tasks behind three dots; `label` names it for screen readers. */
export function TaskMenu({ label, items }: { label: string; items: IAction[] }) {
    return (
        <ActionsColumn
            items={items}
            actionsToggle={({ onToggle, isOpen, toggleRef }) => (
                <MenuToggle
                    ref={toggleRef} aria-label={label} variant="plain" icon={<EllipsisIcon />}
                    onClick={onToggle} isExpanded={isOpen}
                />
            )}
        />
    );
}

/** Reads something when the page is shown and whenever `key` changes. */
export function useReading<T>(read: () => Promise<T>, key: string): [T | null, Failure | null] {
    const [value, setValue] = useState<T | null>(null);
    const [failure, setFailure] = useState<Failure | null>(null);
    useEffect(() => {
        let current = true;
        read().then(
            (result) => {
                if (!current) return;
                setValue(result);
                setFailure(null);
            },
            (error: unknown) => current && setFailure(Failure.from(error)),
        );
        return () => {
            current = false;
        };
    }, [key]);
    return [value, failure];
}
