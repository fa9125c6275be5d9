// Package node is a kubelet whose volumes are real and whose containers are not: its volume manager,
// mounter and plugin watcher are those of a release, the container runtime is a double of
// Kubernetes' own tests.
package node

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/trace/noop"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/logs"
	remote "k8s.io/cri-client/pkg"
	fakeremote "k8s.io/cri-client/pkg/fake"
	"k8s.io/klog/v2"
	kubeletapp "k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/kubelet"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	cadvisortest "k8s.io/kubernetes/pkg/kubelet/cadvisor/testing"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	containertest "k8s.io/kubernetes/pkg/kubelet/container/testing"
	probetest "k8s.io/kubernetes/pkg/kubelet/prober/testing"
	kubeletutil "k8s.io/kubernetes/pkg/kubelet/util"
	"k8s.io/kubernetes/pkg/kubemark"
	"k8s.io/kubernetes/pkg/util/oom"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/configmap"
	"k8s.io/kubernetes/pkg/volume/csi"
	"k8s.io/kubernetes/pkg/volume/emptydir"
	"k8s.io/kubernetes/pkg/volume/hostpath"
	"k8s.io/kubernetes/pkg/volume/projected"
	"k8s.io/kubernetes/pkg/volume/secret"
	"k8s.io/kubernetes/pkg/volume/util/hostutil"
	"k8s.io/kubernetes/pkg/volume/util/subpath"
	"k8s.io/mount-utils"
)

const (
	address      = "127.0.0.1"
	maxPods      = 200
	queries      = 50 // per second, kubelet's default
	burst        = 100
	leaseTimeout = 10 * time.Second
	criTimeout   = 15 * time.Second
	folderMode   = 0o750
	// The attach-detach controller waits for a node's status before it detaches, and a lost node is
	// known by its lease. Shorter than the defaults (10 s, 40 s), so that tests wait less.
	statusEvery  = 2 * time.Second
	leaseSeconds = 12
)

type kubeletConfiguration = kubeletconfig.KubeletConfiguration

type settings struct {
	name, kubeconfig, root string
	port                   int
}

// NewCommand returns the command.
func NewCommand() *cobra.Command {
	var s settings
	command := &cobra.Command{
		Use:          "node",
		SilenceUsage: true,
		RunE: func(command *cobra.Command, _ []string) error {
			logs.InitLogs()
			return run(command.Context(), s)
		},
	}
	flags := command.Flags()
	flags.StringVar(&s.name, "name", "", "name of the node")
	flags.StringVar(&s.kubeconfig, "kubeconfig", "", "credentials of system:node:NAME")
	flags.StringVar(&s.root, "root-dir", "/var/lib/kubelet", "folder of pods and plugins")
	flags.IntVar(&s.port, "port", 10250, "port on "+address)
	return command
}

func run(ctx context.Context, s settings) error {
	config, err := clientcmd.BuildConfigFromFlags("", s.kubeconfig)
	if err != nil {
		return err
	}
	deps, err := dependencies(s, config)
	if err != nil {
		return err
	}
	flags, configuration, err := configure(s)
	if err != nil {
		return err
	}
	if err := addRuntime(ctx, s.root, deps, configuration); err != nil {
		return err
	}
	server := &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *configuration}
	if err := kubeletapp.RunKubelet(ctx, server, deps); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// configure starts from the hollow kubelet of Kubernetes' scalability tests. The attach-detach
// controller attaches, as in every cluster, and the root directory outlives the process.
func configure(s settings) (*options.KubeletFlags, *kubeletConfiguration, error) {
	flags, configuration := kubemark.GetHollowKubeletConfig(&kubemark.HollowKubeletOptions{
		NodeName:    s.name,
		KubeletPort: s.port,
		MaxPods:     maxPods,
		NodeLabels:  map[string]string{"kubernetes.io/hostname": s.name},
	})
	if err := os.RemoveAll(flags.RootDirectory); err != nil { // a new folder in /tmp
		return nil, nil, err
	}
	flags.RootDirectory = s.root
	configuration.StaticPodPath = filepath.Join(s.root, "static")
	configuration.PodLogsDir = filepath.Join(s.root, "logs")
	for _, folder := range []string{configuration.StaticPodPath, configuration.PodLogsDir} {
		if err := os.MkdirAll(folder, folderMode); err != nil {
			return nil, nil, err
		}
	}
	configuration.Address = address
	configuration.ReadOnlyPort = 0
	configuration.EnableControllerAttachDetach = true
	configuration.LocalStorageCapacityIsolation = false
	configuration.MakeIPTablesUtilChains = false // they would be rules of the host
	configuration.NodeStatusUpdateFrequency.Duration = statusEvery
	configuration.NodeLeaseDurationSeconds = leaseSeconds
	return flags, configuration, nil
}

func dependencies(s settings, config *rest.Config) (*kubelet.Dependencies, error) {
	config.QPS, config.Burst = queries, burst
	client, err := clientset.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	lease := *config
	lease.QPS, lease.Timeout = -1, leaseTimeout
	heartbeat, err := clientset.NewForConfig(&lease)
	if err != nil {
		return nil, err
	}
	mounter := mount.New("")
	return &kubelet.Dependencies{
		KubeClient:                client,
		HeartbeatClient:           heartbeat,
		EventClient:               client.CoreV1(),
		ProbeManager:              probetest.FakeManager{},
		CAdvisorInterface:         &cadvisortest.Fake{NodeName: s.name},
		OSInterface:               &containertest.FakeOS{},
		ContainerManager:          cm.NewStubContainerManager(),
		OOMAdjuster:               oom.NewFakeOOMAdjuster(),
		VolumePlugins:             volumePlugins(),
		Mounter:                   mounter,
		Subpather:                 subpath.New(mounter),
		HostUtil:                  hostutil.NewHostUtil(),
		PodStartupLatencyTracker:  kubeletutil.NewPodStartupLatencyTracker(),
		NodeStartupLatencyTracker: kubeletutil.NewNodeStartupLatencyTracker(klog.Background()),
		TracerProvider:            noop.NewTracerProvider(),
	}, nil
}

func volumePlugins() []volume.VolumePlugin {
	var plugins []volume.VolumePlugin
	plugins = append(plugins, emptydir.ProbeVolumePlugins()...)
	plugins = append(plugins, hostpath.ProbeVolumePlugins(volume.VolumeConfig{})...)
	plugins = append(plugins, secret.ProbeVolumePlugins()...)
	plugins = append(plugins, configmap.ProbeVolumePlugins()...)
	plugins = append(plugins, projected.ProbeVolumePlugins()...)
	return append(plugins, csi.ProbeVolumePlugins()...)
}

// addRuntime serves a container runtime that starts nothing, over a socket as a real one.
func addRuntime(
	ctx context.Context, root string, deps *kubelet.Dependencies, configuration *kubeletConfiguration,
) error {
	endpoint := "unix://" + filepath.Join(root, "runtime.sock")
	configuration.ContainerRuntimeEndpoint = endpoint
	configuration.ImageServiceEndpoint = endpoint
	runtime := fakeremote.NewFakeRemoteRuntime()
	if err := runtime.Start(endpoint); err != nil {
		return err
	}
	service, err := remote.NewRemoteRuntimeServiceBuilder().
		WithEndpoint(endpoint).WithConnectionTimeout(criTimeout).Build(ctx)
	if err != nil {
		return err
	}
	deps.RemoteRuntimeService, deps.RemoteImageService = service, runtime.ImageService
	return nil
}
