/** The registered clients, and how each gets its certificate. */
import { Button, Content, Title } from "@patternfly/react-core";
import { Table, Tbody, Td, Th, Thead, Tr } from "@patternfly/react-table";
import { useOpenTask } from "./dialog";
import { age, word } from "./format";
import type { Host, Volume } from "./objects";
import { Nothing, Section, TaskMenu, VolumeLink } from "./parts";
import { useSilo } from "./silo";
import * as tasks from "./tasks";

export function ClientsPage() {
    const { hosts, volumes } = useSilo();
    const open = useOpenTask();
    return (
        <main className="zs-main">
            <Title headingLevel="h1">Clients</Title>
            <div>
                <Button onClick={() => open(tasks.registerHost)}>Register client</Button>
            </div>
            {hosts.length === 0 ? <Nothing title="No registered clients" /> : <HostsTable hosts={hosts} volumes={volumes} />}
            <Section title="Certificates">
                <Content component="p">
                    A client that runs zfsilo needs a join file, which is a secret: zfsiloctl makes it on this host. It needs
                    administrative access, and does not pass over D-Bus.
                </Content>
                <Button variant="secondary" onClick={() => open(tasks.issueCertificate)}>Issue a certificate</Button>
            </Section>
        </main>
    );
}

function HostsTable({ hosts, volumes }: { hosts: Host[]; volumes: Volume[] }) {
    const open = useOpenTask();
    return (
        <Table aria-label="Clients" variant="compact" gridBreakPoint="grid-lg">
            <Thead>
                <Tr>
                    <Th>Name</Th><Th>Initiator</Th><Th>Addresses</Th><Th>Certificate</Th><Th>Volumes</Th><Th>Age</Th>
                    <Th screenReaderText="Actions" />
                </Tr>
            </Thead>
            <Tbody>
                {hosts.map((host) => (
                    <Tr key={host.path}>
                        <Td dataLabel="Name">{host.Id}</Td>
                        <Td dataLabel="Initiator" className="zs-wrap">{host.Iqn || host.Nqn}</Td>
                        <Td dataLabel="Addresses">{host.Addresses.join(", ") || "none"}</Td>
                        <Td dataLabel="Certificate">{word(host.Authority) || "not used yet"}</Td>
                        <Td dataLabel="Volumes"><Published host={host} volumes={volumes} /></Td>
                        <Td dataLabel="Age">{age(host.CreatedAt)}</Td>
                        <Td isActionCell>
                            <TaskMenu
                                label={`Actions for ${host.Id}`}
                                items={[{ title: "Remove", isDanger: true, onClick: () => open(tasks.deleteHost(host)) }]}
                            />
                        </Td>
                    </Tr>
                ))}
            </Tbody>
        </Table>
    );
}

function Published({ host, volumes }: { host: Host; volumes: Volume[] }) {
    const own = volumes.filter(({ Publications }) => host.Id in Publications);
    if (own.length === 0) return "none";
    return own.map(({ Id }, index) => <span key={Id}>{index > 0 && ", "}<VolumeLink id={Id} /></span>);
}
