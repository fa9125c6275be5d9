// One program for all parts of Kubernetes that the tests run; the first argument names the part.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"

	"zfsilo.example/kubernetes/blocks"
	"zfsilo.example/kubernetes/node"
	"zfsilo.example/kubernetes/registrar"
)

const usageExit = 2

func commands() map[string]func() *cobra.Command {
	return map[string]func() *cobra.Command{
		"apiserver": apiserver.NewAPIServerCommand,
		"manager":   manager.NewControllerManagerCommand,
		"scheduler": func() *cobra.Command { return scheduler.NewSchedulerCommand() },
		"kubectl":   kubectl.NewDefaultKubectlCommand,
		"node":      node.NewCommand,
		"registrar": registrar.NewCommand,
		"blocks":    blocks.NewCommand,
	}
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: kube PART [ARGUMENT...]")
		os.Exit(usageExit)
	}
	part := os.Args[1]
	os.Args = append([]string{part}, os.Args[2:]...)
	if part == "etcd" {
		etcdmain.Main(os.Args)
		return
	}
	command, known := commands()[part]
	if !known {
		fmt.Fprintln(os.Stderr, "kube: unknown part", part)
		os.Exit(usageExit)
	}
	os.Exit(cli.Run(command()))
}
