/** The table of volumes. */
import { Button, Flex, FlexItem, Label, Pagination, TextInput, Title } from "@patternfly/react-core";
import { Table, Tbody, Td, Th, Thead, Tr, type IAction } from "@patternfly/react-table";
import { useState } from "react";
import { useOpenTask, type Task } from "./dialog";
import { age, size } from "./format";
import type { Host, Volume } from "./objects";
import { Nothing, StateLabel, TaskMenu, useReading, VolumeLink } from "./parts";
import { silo, useSilo } from "./silo";
import * as tasks from "./tasks";

const PAGE_SIZE = 50;

export function VolumesPage() {
    const { volumes } = useSilo();
    const open = useOpenTask();
    const [filter, setFilter] = useState("");
    const [page, setPage] = useState(1);
    const matching = volumes.filter(({ Id }) => Id.includes(filter));
    const shown = matching.slice((page - 1) * PAGE_SIZE, page * PAGE_SIZE);
    return (
        <main className="zs-main">
            <Title headingLevel="h1">Volumes</Title>
            <Flex>
                <FlexItem>
                    <TextInput
                        type="search"
                        aria-label="Filter by name"
                        placeholder="Filter by name"
                        value={filter}
                        onChange={(_event, text) => { setFilter(text); setPage(1); }}
                    />
                </FlexItem>
                <FlexItem><Button onClick={() => open(tasks.createVolume)}>Create volume</Button></FlexItem>
                {matching.length > PAGE_SIZE && (
                    <FlexItem align={{ default: "alignRight" }}>
                        <Pagination
                            isCompact itemCount={matching.length} perPage={PAGE_SIZE} page={page}
                            perPageOptions={[]} onSetPage={(_event, number) => setPage(number)}
                        />
                    </FlexItem>
                )}
            </Flex>
            {shown.length ? <VolumesTable volumes={shown} /> : <Nothing title={volumes.length ? "No volume has this name" : "No volumes"} />}
        </main>
    );
}

function VolumesTable({ volumes }: { volumes: Volume[] }) {
    return (
        <Table aria-label="Volumes" variant="compact" gridBreakPoint="grid-md">
            <Thead>
                <Tr>
                    <Th>Name</Th><Th>State</Th><Th>Size</Th><Th>Used</Th><Th>Clients</Th><Th>Age</Th>
                    <Th screenReaderText="Actions" />
                </Tr>
            </Thead>
            <Tbody>{volumes.map((volume) => <VolumeRow key={volume.path} volume={volume} />)}</Tbody>
        </Table>
    );
}

function VolumeRow({ volume }: { volume: Volume }) {
    const { hosts } = useSilo();
    const open = useOpenTask();
    return (
        <Tr>
            <Td dataLabel="Name"><VolumeLink id={volume.Id} /></Td>
            <Td dataLabel="State"><VolumeState volume={volume} /></Td>
            <Td dataLabel="Size">{size(volume.CapacityBytes)}</Td>
            <Td dataLabel="Used"><Used volume={volume} /></Td>
            <Td dataLabel="Clients">{Object.keys(volume.Publications).join(", ") || "none"}</Td>
            <Td dataLabel="Age">{age(volume.CreatedAt)}</Td>
            <Td isActionCell>
                <TaskMenu items={actionsOf(volume, hosts, open)} label={`Actions for ${volume.Id}`} />
            </Td>
        </Tr>
    );
}

export function VolumeState({ volume }: { volume: Volume }) {
    return (
        <Flex gap={{ default: "gapXs" }}>
            <FlexItem><StateLabel state={volume.State} /></FlexItem>
            {volume.Conditions.length > 0 && (
                <FlexItem><Label isCompact status="danger">{volume.ConditionReasons.join(", ")}</Label></FlexItem>
            )}
            {volume.Operation !== "/" && <FlexItem><Label isCompact color="blue">changing</Label></FlexItem>}
        </Flex>
    );
}

function Used({ volume }: { volume: Volume }) {
    const [figures, failure] = useReading(async () => {
        const body = await silo.call(volume.path, "Volume", "Stats");
        return body[0] as Record<string, number>;
    }, `${volume.path} ${volume.Etag}`);
    const used = figures?.["bytes_used"] ?? figures?.["used"];
    if (failure) return <span title={failure.message}>unknown</span>;
    return used === undefined ? null : size(used);
}

/** The tasks of a volume, as the items of a menu. */
export function actionsOf(volume: Volume, hosts: Host[], open: (task: Task) => void): IAction[] {
    const clients = Object.keys(volume.Publications);
    const item = (title: string, task: () => Task, more: Partial<IAction> = {}): IAction => ({
        title, onClick: () => open(task()), ...more,
});
    if (!volume.Dataset) return [item("Reconcile", () => tasks.repairDrift(volume))];
    return [
        item("Publish", () => tasks.publish(volume, hosts), { isDisabled: hosts.length === 0 }),
        ...clients.map((host) => item(`Unpublish from ${host}`, () => tasks.unpublish(volume, host))),
        ...clients.map((host) => item(`Fence ${host}`, () => tasks.fence(volume, host))),
        item("Grow", () => tasks.grow(volume)),
        item("Snapshot", () => tasks.takeSnapshot(volume)),
        item("Clone", () => tasks.cloneOf(volume)),
        ...(clients.length ? [item("Replace secrets", () => tasks.rotateSecrets(volume))] : []),
        ...(volume.Encrypted ? [item("Replace key", () => tasks.rotateKey(volume))] : []),
        item("Reconcile", () => tasks.repairDrift(volume)),
        { isSeparator: true },
        item("Delete", () => tasks.deleteVolume(volume), { isDanger: true }),
    ];
}
