/** The page of a volume: its facts, details, publications, snapshots and operations. */
import {
    Alert, Breadcrumb, BreadcrumbItem, Button, Flex, FlexItem, Grid, GridItem, Label,
    Spinner, Stack, StackItem, Title,
} from "@patternfly/react-core";
import { Table, Tbody, Td, Th, Thead, Tr } from "@patternfly/react-table";
import { useOpenTask } from "./dialog";
import { age, capitalised, labelsOf, size, when, word } from "./format";
import { idOf, type Volume } from "./objects";
import { OperationsTable } from "./operations";
import { FailureAlert, Nothing, OperationLink, Prose, Section, Terms, TaskMenu, useReading } from "./parts";
import { silo, useSilo } from "./silo";
import * as tasks from "./tasks";
import { actionsOf, VolumeState } from "./volumes";

type Fact = [section: string, text: string, wanted: boolean, truth: string, problem: string];
const SHOWN_OPERATIONS = 10;

export function VolumePage({ id }: { id: string }) {
    const { volumes, hosts } = useSilo();
    const open = useOpenTask();
    const volume = volumes.find(({ Id }) => Id === id);
    return (
        <main className="zs-main">
            <Breadcrumb>
                <BreadcrumbItem to="#/volumes">Volumes</BreadcrumbItem>
                <BreadcrumbItem isActive>{id}</BreadcrumbItem>
            </Breadcrumb>
            {!volume ? <Nothing title={`${id} does not exist`} /> : (
                <>
                    <Flex justifyContent={{ default: "justifyContentSpaceBetween" }} alignItems={{ default: "alignItemsCenter" }}>
                        <Flex alignItems={{ default: "alignItemsCenter" }}>
                            <FlexItem><Title headingLevel="h1" className="zs-wrap">{id}</Title></FlexItem>
                            <FlexItem><VolumeState volume={volume} /></FlexItem>
                        </Flex>
                        <FlexItem>
                            <TaskMenu items={actionsOf(volume, hosts, open)} label={`Actions for ${id}`} />
                        </FlexItem>
                    </Flex>
                    {volume.Conditions.map((sentence, index) => (
                        <Alert key={sentence} isInline variant="danger" title={<Prose text={sentence} />}>
                            Reason: {volume.ConditionReasons[index]}
                        </Alert>
                    ))}
                    <Grid hasGutter>
                        <GridItem lg={6}>
                            <Stack hasGutter>
                                <StackItem><Details volume={volume} /></StackItem>
                                <StackItem><Publications volume={volume} /></StackItem>
                                <StackItem><Snapshots volume={volume} /></StackItem>
                            </Stack>
                        </GridItem>
                        <GridItem lg={6}><Facts volume={volume} /></GridItem>
                        <GridItem>
                            <Section title="Operations of the last day">
                                <OperationsTable subject={`volumes/${id}`} since={86400} most={SHOWN_OPERATIONS} />
                            </Section>
                        </GridItem>
                    </Grid>
                </>
            )}
        </main>
    );
}

function Details({ volume }: { volume: Volume }) {
    const [state, type, uuid] = volume.Filesystem;
    return (
        <Section title="Details">
            <Terms rows={[
                ["Size", `${size(volume.CapacityBytes)}${volume.Dataset ? (volume.Thin ? ", thin" : ", thick") : ""}`],
                ["Used as", word(volume.Mode)],
                ["Filesystem", state === "NONE" ? "none" : `${type} ${word(state)} ${uuid}`],
                ["Dataset", volume.Dataset],
                ["Encrypted", volume.Encrypted ? "yes" : ""],
                ["Limits", limitsOf(volume)],
                ["Properties", labelsOf(volume.Properties)],
                ["Labels", labelsOf(volume.Labels)],
                ["Clients that may publish", volume.Hosts.join(", ")],
                ["Access modes", volume.AccessModes.map(word).join(", ")],
                ["Server", volume.Server && `${volume.Server} (volume ${volume.ServerVolume})`],
                ["Staged at", volume.StagingPath],
                ["Mounted at", Object.keys(volume.Mounts).join(", ")],
                ["After a reboot", volume.Restore && (volume.Restore === "BOOT" ? "restored" : "not restored")],
                ["Operation", volume.Operation !== "/" && volume.Operation
                    ? <OperationLink path={volume.Operation}>{idOf(volume.Operation)}</OperationLink>
                    : ""],
                ["Uid", volume.Uid],
                ["Created", when(volume.CreatedAt)],
            ]} />
        </Section>
    );
}

/** The limits of reads and writes a second; "" without one. */
function limitsOf(volume: Volume): string {
    return [
        volume.LimitReadIops ? `${volume.LimitReadIops} reads/s` : "",
        volume.LimitWriteIops ? `${volume.LimitWriteIops} writes/s` : "",
        volume.LimitReadBytes ? `${size(volume.LimitReadBytes)}/s read` : "",
        volume.LimitWriteBytes ? `${size(volume.LimitWriteBytes)}/s written` : "",
    ].filter(Boolean).join(", ");
}

/** The facts on the host by section, with those that differ from the records marked. */
function Facts({ volume }: { volume: Volume }) {
    const open = useOpenTask();
    const { status } = useSilo();
    const key = `${volume.Etag} ${volume.Conditions.join()} ${volume.Operation} ${JSON.stringify(status?.attention)}`;
    const [facts, failure] = useReading(async () => {
        const body = await silo.call(volume.path, "Volume", "Probe");
        return body[0] as Fact[];
    }, key);
    const sections = [...new Set(facts?.map(([section]) => section))];
    return (
        <Section
            title="Facts on this host"
            actions={<Button variant="secondary" size="sm" onClick={() => open(tasks.repairDrift(volume))}>Reconcile</Button>}
        >
            {failure && <FailureAlert failure={failure} />}
            {!facts && !failure && <Spinner aria-label="Probing" />}
            <ul className="zs-facts">
                {sections.map((section) => (
                    <li key={section}>
                        <strong>{capitalised(section)}</strong>
                        <ul>
                            {facts?.filter((fact) => fact[0] === section).map((fact) => <FactItem key={fact[1]} fact={fact} />)}
                        </ul>
                    </li>
                ))}
            </ul>
        </Section>
    );
}

function FactItem({ fact: [, text, wanted, truth, problem] }: { fact: Fact }) {
    const holds = truth === (wanted ? "PRESENT" : "ABSENT");
    const differs = truth === "CONFLICT" || (!holds && truth !== "UNKNOWN");
    const verdict = holds ? "ok" : truth === "PRESENT" ? "not wanted" : word(truth);
    return (
        <li>
            <span className="zs-verdict">
                <Label isCompact {...(holds ? { status: "success" as const } : differs ? { status: "danger" as const } : {})}>
                    {verdict}
                </Label>
            </span>
            <span className="zs-text">{wanted ? text : `not: ${text}`}{problem && <> — <Prose text={problem} /></>}</span>
        </li>
    );
}

function Publications({ volume }: { volume: Volume }) {
    const { hosts } = useSilo();
    const open = useOpenTask();
    const rows = Object.entries(volume.Publications);
    return (
        <Section
            title="Published to"
            actions={
                volume.Dataset && (
                    <Button variant="secondary" size="sm" isDisabled={hosts.length === 0} onClick={() => open(tasks.publish(volume, hosts))}>
                        Publish
                    </Button>
                )
            }
        >
            {rows.length === 0 ? <Nothing title="Not published" /> : (
                <Table aria-label="Publications" variant="compact" gridBreakPoint="grid-md">
                    <Thead>
                        <Tr><Th>Client</Th><Th>Access</Th><Th>Epoch</Th><Th>Age</Th><Th screenReaderText="Actions" /></Tr>
                    </Thead>
                    <Tbody>
                        {rows.map(([host, one]) => (
                            <Tr key={host}>
                                <Td dataLabel="Client">{host}</Td>
                                <Td dataLabel="Access">{word(one.access_mode)}{one.readonly && ", read-only"} over {word(one.transport)}</Td>
                                <Td dataLabel="Epoch">{one.epoch}</Td>
                                <Td dataLabel="Age">{age(one.created_at)}</Td>
                                <Td isActionCell>
                                    <TaskMenu
                                        label={`Actions for ${host}`}
                                        items={[
                                            { title: "Unpublish", onClick: () => open(tasks.unpublish(volume, host)) },
                                            { title: "Fence", isDanger: true, onClick: () => open(tasks.fence(volume, host)) },
                                        ]}
                                    />
                                </Td>
                            </Tr>
                        ))}
                    </Tbody>
                </Table>
            )}
        </Section>
    );
}

function Snapshots({ volume }: { volume: Volume }) {
    const { snapshots } = useSilo();
    const open = useOpenTask();
    const own = snapshots.filter((snapshot) => snapshot.Volume === volume.Id);
    return (
        <Section
            title="Snapshots"
            actions={
                volume.Dataset && (
                    <Button variant="secondary" size="sm" onClick={() => open(tasks.takeSnapshot(volume))}>Create snapshot</Button>
                )
            }
        >
            {own.length === 0 ? <Nothing title="No snapshots" /> : (
                <Table aria-label="Snapshots" variant="compact" gridBreakPoint="grid-md">
                    <Thead><Tr><Th>Name</Th><Th>Size</Th><Th>Age</Th><Th screenReaderText="Actions" /></Tr></Thead>
                    <Tbody>
                        {own.map((snapshot) => (
                            <Tr key={snapshot.path}>
                                <Td dataLabel="Name">{snapshot.Id}</Td>
                                <Td dataLabel="Size">{size(snapshot.SizeBytes)}</Td>
                                <Td dataLabel="Age">{age(snapshot.CreatedAt)}</Td>
                                <Td isActionCell>
                                    <TaskMenu
                                        label={`Actions for ${snapshot.Id}`}
                                        items={[
                                            { title: "Clone", onClick: () => open(tasks.cloneOf(snapshot)) },
                                            { title: "Delete", isDanger: true, onClick: () => open(tasks.deleteSnapshot(snapshot)) },
                                        ]}
                                    />
                                </Td>
                            </Tr>
                        ))}
                    </Tbody>
                </Table>
            )}
        </Section>
    );
}
