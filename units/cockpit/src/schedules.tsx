/** The snapshot policies: when snapshots are taken, of which volumes, and which are kept. */
import { Button, Label, Title } from "@patternfly/react-core";
import { Table, Tbody, Td, Th, Thead, Tr } from "@patternfly/react-table";
import { useOpenTask } from "./dialog";
import { age, labelsOf } from "./format";
import type { Policy, Volume } from "./objects";
import { Nothing, TaskMenu } from "./parts";
import { useSilo } from "./silo";
import * as tasks from "./tasks";

export function SchedulesPage() {
    const { policies } = useSilo();
    const open = useOpenTask();
    return (
        <main className="zs-main">
            <Title headingLevel="h1">Schedules</Title>
            <div>
                <Button onClick={() => open(tasks.createPolicy)}>Create schedule</Button>
            </div>
            {policies.length === 0 ? <Nothing title="No schedules" /> : <PoliciesTable policies={policies} />}
        </main>
    );
}

function PoliciesTable({ policies }: { policies: Policy[] }) {
    return (
        <Table aria-label="Schedules" variant="compact" gridBreakPoint="grid-lg">
            <Thead>
                <Tr>
                    <Th>Name</Th><Th>When</Th><Th>Keeps</Th><Th>Labels</Th><Th>Volumes</Th><Th>Last run</Th>
                    <Th screenReaderText="Actions" />
                </Tr>
            </Thead>
            <Tbody>{policies.map((policy) => <PolicyRow key={policy.path} policy={policy} />)}</Tbody>
        </Table>
    );
}

function PolicyRow({ policy }: { policy: Policy }) {
    const { volumes } = useSilo();
    const open = useOpenTask();
    return (
        <Tr>
            <Td dataLabel="Name">{policy.Id}</Td>
            <Td dataLabel="When" className="zs-wrap">{policy.Calendar}</Td>
            <Td dataLabel="Keeps" className="zs-wrap">{policy.Grid}</Td>
            <Td dataLabel="Labels" className="zs-wrap">{labelsOf(policy.Selector) || "all volumes"}</Td>
            <Td dataLabel="Volumes">{selected(policy, volumes)}{policy.Grouped && ", one group"}</Td>
            <Td dataLabel="Last run"><LastRun policy={policy} /></Td>
            <Td isActionCell>
                <TaskMenu
                    label={`Actions for ${policy.Id}`}
                    items={[
                        { title: "Run now", onClick: () => open(tasks.runPolicy(policy)) },
                        { title: "Change", onClick: () => open(tasks.changePolicy(policy)) },
                        { title: "Delete", isDanger: true, onClick: () => open(tasks.deletePolicy(policy)) },
                    ]}
                />
            </Td>
        </Tr>
    );
}

function LastRun({ policy }: { policy: Policy }) {
    const ran = policy.RunAt ? `${age(policy.RunAt)} ago` : "never";
    if (policy.Failures.length === 0) return ran;
    return <>{ran} <Label isCompact status="danger">failed</Label> <span className="zs-wrap">{policy.Failures[0]}</span></>;
}

/** Returns the number of volumes of this server that have all labels of a policy. */
function selected({ Selector }: Policy, volumes: Volume[]): number {
    const wanted = Object.entries(Selector);
    return volumes.filter(({ Dataset, Labels }) => Dataset && wanted.every(([name, value]) => Labels[name] === value)).length;
}
