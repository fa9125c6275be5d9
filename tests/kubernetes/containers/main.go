// The programs of the pods in the lab that Debian does not have, and that Go modules do not offer under
// their release: the container that holds a pod's namespaces, and two sidecars of the node's pod.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"

	"zfsilo.example/kubernetes/registrar"
)

const usageExit = 2

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: containers PART [ARGUMENT...]")
		os.Exit(usageExit)
	}
	part := os.Args[1]
	os.Args = append([]string{part}, os.Args[2:]...)
	commands := map[string]func() *cobra.Command{
		"liveness":  newLiveness,
		"registrar": registrar.NewCommand,
	}
	if part == "pause" {
		pause()
		return
	}
	command, known := commands[part]
	if !known {
		fmt.Fprintln(os.Stderr, "containers: unknown part", part)
		os.Exit(usageExit)
	}
	os.Exit(cli.Run(command()))
}
