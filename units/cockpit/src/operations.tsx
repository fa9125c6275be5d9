/** Operations: the table of recent ones, and the page of one with its actions and its journal. */
import {
    Breadcrumb, BreadcrumbItem, Button, CodeBlock, CodeBlockCode, Flex, FlexItem, FormSelect,
    FormSelectOption, Grid, GridItem, Spinner, Title,
} from "@patternfly/react-core";
import { Table, Tbody, Td, Th, Thead, Tr } from "@patternfly/react-table";
import { useState } from "react";
import { useOpenTask } from "./dialog";
import { age, duration, when } from "./format";
import { isSettled, pathOf, type Operation } from "./objects";
import { FailureAlert, failureOf, Nothing, OperationLink, OperationProgress, Section, StateLabel, Terms, useReading } from "./parts";
import { silo, useSilo } from "./silo";
import * as tasks from "./tasks";

const PERIODS: [string, string][] = [["3600", "Last hour"], ["86400", "Last day"], ["604800", "Last week"]];
const SHOWN = 100;
const JOURNAL_LINES = "500";

export function OperationsPage() {
    const [period, setPeriod] = useState("86400");
    return (
        <main className="zs-main">
            <Flex justifyContent={{ default: "justifyContentSpaceBetween" }}>
                <FlexItem><Title headingLevel="h1">Operations</Title></FlexItem>
                <FlexItem>
                    <FormSelect aria-label="Period" value={period} onChange={(_event, value) => setPeriod(value)}>
                        {PERIODS.map(([value, label]) => <FormSelectOption key={value} value={value} label={label} />)}
                    </FormSelect>
                </FlexItem>
            </Flex>
            <OperationsTable subject="" since={Number(period)} most={SHOWN} />
        </main>
    );
}

/** The newest operations: `since` in seconds before now, at most `most`. */
export function OperationsTable({ subject, since, most }: { subject: string; since: number; most: number }) {
    const { operations } = useSilo();
    const live = operations.map(({ path, State }) => `${path} ${State}`).join();
    const [rows, failure] = useReading(
        () => silo.history(Math.floor(Date.now() / 1000) - since, subject, most),
        `${subject} ${since} ${live}`,
    );
    if (failure) return <FailureAlert failure={failure} />;
    if (!rows) return <Spinner aria-label="Loading" />;
    if (rows.length === 0) return <Nothing title="No operations" />;
    return (
        <Table aria-label="Operations" variant="compact" gridBreakPoint="grid-md">
            <Thead>
                <Tr><Th>Operation</Th><Th>State</Th><Th>Requested by</Th><Th>Took</Th><Th>Age</Th></Tr>
            </Thead>
            <Tbody>
                {rows.map((operation) => (
                    <Tr key={operation.path}>
                        <Td dataLabel="Operation"><OperationLink path={operation.path}>{operation.Title}</OperationLink></Td>
                        <Td dataLabel="State"><StateLabel state={operation.State} /></Td>
                        <Td dataLabel="Requested by">{operation.Caller}</Td>
                        <Td dataLabel="Took">{took(operation)}</Td>
                        <Td dataLabel="Age">{age(operation.CreatedAt)}</Td>
                    </Tr>
                ))}
            </Tbody>
        </Table>
    );
}

function took(operation: Operation): string {
    return operation.EndedAt ? duration(operation.EndedAt - operation.CreatedAt) : "";
}

export function OperationPage({ id }: { id: string }) {
    const { operations } = useSilo();
    const open = useOpenTask();
    const path = pathOf("operation", id);
    const live = operations.find((operation) => operation.path === path);
    const key = live ? `${live.State} ${live.Progress}` : "ended";
    const [operation, failure] = useReading(() => silo.operation(path), key);
    const problem = operation && failureOf(operation);
    return (
        <main className="zs-main">
            <Breadcrumb>
                <BreadcrumbItem to="#/operations">Operations</BreadcrumbItem>
                <BreadcrumbItem isActive>{id}</BreadcrumbItem>
            </Breadcrumb>
            {failure && <FailureAlert failure={failure} />}
            {operation && (
                <>
                    <Flex alignItems={{ default: "alignItemsCenter" }}>
                        <FlexItem><Title headingLevel="h1" className="zs-wrap">{operation.Title}</Title></FlexItem>
                        <FlexItem><StateLabel state={operation.State} /></FlexItem>
                        {!isSettled(operation) && (
                            <FlexItem><Button variant="secondary" onClick={() => open(tasks.cancel(operation))}>Cancel operation</Button></FlexItem>
                        )}
                        {operation.State === "NEEDS_REPAIR" && (
                            <>
                                <FlexItem><Button onClick={() => open(tasks.repair(operation))}>Repair</Button></FlexItem>
                                <FlexItem><Button variant="danger" onClick={() => open(tasks.abandon(operation))}>Abandon</Button></FlexItem>
                            </>
                        )}
                    </Flex>
                    {problem && <FailureAlert failure={problem} />}
                    {!isSettled(operation) && <OperationProgress operation={operation} />}
                    <Grid hasGutter>
                        <GridItem lg={6}><Actions operation={operation} /></GridItem>
                        <GridItem lg={6}>
                            <Section title="Details">
                                <Terms rows={[
                                    ["Subject", operation.Subject],
                                    ["Requested by", operation.Caller],
                                    ["Submitted", when(operation.CreatedAt)],
                                    ["Ended", when(operation.EndedAt)],
                                ]} />
                            </Section>
                        </GridItem>
                        <GridItem><Journal id={id} version={key} /></GridItem>
                    </Grid>
                </>
            )}
        </main>
    );
}

function Actions({ operation }: { operation: Operation }) {
    return (
        <Section title="Actions">
            <ol className="zs-facts">
                <li>
                    <ul>
                        {operation.Actions.map(([, text, status], index) => (
                            <li key={index}>
                                <span className="zs-verdict"><StateLabel state={status} /></span>
                                <span className="zs-text">{text}</span>
                            </li>
                        ))}
                    </ul>
                </li>
            </ol>
        </Section>
    );
}

/** What the units of the operation have written to the journal. */
function Journal({ id, version }: { id: string; version: string }) {
    const [lines, failure] = useReading(
        () => cockpit.spawn(
            ["journalctl", "--no-pager", "--output=short-iso", `--lines=${JOURNAL_LINES}`, `ZFSILO_OPERATION=${id}`],
            { superuser: "try", err: "message" },
        ),
        version,
    );
    return (
        <Section title="Journal">
            {failure && <FailureAlert failure={failure} />}
            {!lines && !failure && <Spinner aria-label="Reading the journal" />}
            {lines && (
                <CodeBlock>
                    <CodeBlockCode className="zs-journal" tabIndex={0} role="region" aria-label="Lines of the journal">{lines}</CodeBlockCode>
                </CodeBlock>
            )}
        </Section>
    );
}
