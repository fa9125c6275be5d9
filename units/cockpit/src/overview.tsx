/** The overview: space, what needs attention, running operations, counts. */
import {
    Alert, Grid, GridItem, Progress, Spinner, Stack, StackItem, Title,
} from "@patternfly/react-core";
import { size, word } from "./format";
import type { Operation } from "./objects";
import { Command, Nothing, OperationLink, OperationProgress, Prose, Section, Terms, VolumeLink } from "./parts";
import { useSilo, type Status } from "./silo";

export function Overview() {
    const { status, operations, version } = useSilo();
    return (
        <main className="zs-main">
            <Title headingLevel="h1" className="pf-v6-u-screen-reader">Overview</Title>
            {!status ? <Spinner aria-label="Loading the status" /> : (
                <Grid hasGutter>
                    <GridItem md={6}>
                        <Stack hasGutter>
                            <StackItem><Attention status={status} /></StackItem>
                            <StackItem><Running operations={operations} /></StackItem>
                        </Stack>
                    </GridItem>
                    <GridItem md={6}>
                        <Stack hasGutter>
                            <StackItem><Space status={status} /></StackItem>
                            <StackItem><Counts status={status} version={version} /></StackItem>
                        </Stack>
                    </GridItem>
                </Grid>
            )}
        </main>
    );
}

function Running({ operations }: { operations: Operation[] }) {
    return (
        <Section title="Running operations">
            {operations.length === 0 && <Nothing title="No operation is running" />}
            <Stack hasGutter>
                {operations.map((operation) => (
                    <StackItem key={operation.path}>
                        <OperationProgress operation={operation} />
                        <OperationLink path={operation.path}>Details of {operation.Title}</OperationLink>
                    </StackItem>
                ))}
            </Stack>
        </Section>
    );
}

function Attention({ status }: { status: Status }) {
    return (
        <Section title="Health">
            {status.attention.length === 0 && (
                <Alert isInline isPlain variant="success" title="Nothing needs attention" />
            )}
            <Stack hasGutter>
                {status.attention.map(([subject, sentence, command], index) => (
                    <StackItem key={index}>
                        <Alert isInline variant="warning" title={<Prose text={sentence} />}>
                            {subject.startsWith("volumes/") && (
                                <p>Volume <VolumeLink id={subject.slice("volumes/".length)} /></p>
                            )}
                            {command && !sentence.includes(command) && <Command text={command} />}
                        </Alert>
                    </StackItem>
                ))}
            </Stack>
        </Section>
    );
}

function Space({ status }: { status: Status }) {
    const { available_bytes: available, total_bytes: total, promised_bytes: promised = 0 } = status.figures;
    if (!status.root || available === undefined || !total) {
        return <Section title="Space"><Nothing title={status.root || "This host is not a server"} /></Section>;
    }
    const share = (part: number) => Math.round((100 * part) / total);
    const used = total - available;
    return (
        <Section title="Space">
            <Stack hasGutter>
                <StackItem>
                    <Progress title={status.root} value={share(used)} {...(share(used) > 90 ? { variant: "warning" as const } : {})} />
                </StackItem>
                <StackItem>
                    <Terms rows={[
                        ["Available", `${size(available)} of ${size(total)}`],
                        ["Sizes of all volumes", `${size(promised)} (${share(promised)} %)`],
                    ]} />
                </StackItem>
            </Stack>
        </Section>
    );
}

function Counts({ status, version }: { status: Status; version: string }) {
    const states = Object.entries(status.states).map(([state, count]) => [`Volumes ${word(state)}`, String(count)] as const);
    return (
        <Section title="This host">
            <Terms rows={[
                ...(states.length ? states : [["Volumes", "none"] as const]),
                ["Publications", String(status.figures["publications"] ?? 0)],
                ["Registered clients", String(status.figures["hosts"] ?? 0)],
                ["Version", version],
            ]} />
        </Section>
    );
}
