// Package blocks is a client of the sidecar external-snapshot-metadata, as backup software is: it
// finds the service by its object, and calls it with a token of the account in its kubeconfig. It
// prints the ranges, or copies them from one device to another and compares the devices. The release
// of the sidecar has the library for this, and the programs over it in no module.
package blocks

import (
	"context"
	"fmt"
	"os"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/iterator"
	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
)

type settings struct {
	kubeconfig, source, target string
	query                      iterator.Args
}

// NewCommand returns the command.
func NewCommand() *cobra.Command {
	var s settings
	command := &cobra.Command{
		Use:          "blocks",
		SilenceUsage: true,
		RunE: func(command *cobra.Command, _ []string) error {
			return run(command.Context(), s)
		},
	}
	flags := command.Flags()
	flags.StringVar(&s.kubeconfig, "kubeconfig", "", "credentials of a service account")
	flags.StringVar(&s.query.Namespace, "namespace", "", "namespace of the snapshots")
	flags.StringVar(&s.query.SnapshotName, "snapshot", "", "the VolumeSnapshot")
	flags.StringVar(&s.query.PrevSnapshotName, "base", "", "an older one: only what changed since")
	flags.StringVar(&s.query.PrevSnapshotID, "base-handle", "", "the same by its CSI handle")
	flags.Int64Var(&s.query.StartingOffset, "starting-offset", 0, "the first byte")
	flags.Int32Var(&s.query.MaxResults, "max-results", 0, "the most ranges of one message")
	flags.StringVar(&s.source, "source", "", "device to copy the ranges from, instead of printing")
	flags.StringVar(&s.target, "target", "", "device to copy the ranges to")
	return command
}

func run(ctx context.Context, s settings) error {
	config, err := clientcmd.BuildConfigFromFlags("", s.kubeconfig)
	if err != nil {
		return err
	}
	if s.query.Clients, err = iterator.BuildClients(config); err != nil {
		return err
	}
	if s.source == "" {
		s.query.Emitter = &iterator.JSONEmitter{Writer: os.Stdout}
		return iterator.GetSnapshotMetadata(ctx, s.query)
	}
	source, err := os.Open(s.source)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(s.target, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer target.Close()
	s.query.Emitter = &iterator.VerifierEmitter{SourceDevice: source, TargetDevice: target}
	if err := iterator.GetSnapshotMetadata(ctx, s.query); err != nil {
		return err
	}
	fmt.Println("the devices are equal")
	return target.Sync()
}
