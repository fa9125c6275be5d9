// Package registrar serves kubelet's plugin registration for a CSI driver, with the arguments of
// csi-node-driver-registrar that the chart sets. That program is not among the Go modules that a
// build can fetch by its release version.
package registrar

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	folder      = "/registration"
	pluginReply = 30 * time.Second
)

type server struct {
	registration.UnimplementedRegistrationServer
	driver, endpoint string
	refused          chan error
}

// NewCommand returns the command.
func NewCommand() *cobra.Command {
	var address, endpoint string
	command := &cobra.Command{
		Use:          "registrar",
		SilenceUsage: true,
		RunE: func(command *cobra.Command, _ []string) error {
			// The socket of the registration is removed at the end: kubelet then forgets the driver.
			ctx, stop := signal.NotifyContext(command.Context(), syscall.SIGTERM)
			defer stop()
			return run(ctx, address, endpoint)
		},
	}
	command.Flags().StringVar(&address, "csi-address", "", "socket of the driver, here")
	command.Flags().StringVar(&endpoint, "kubelet-registration-path", "", "the same for kubelet")
	return command
}

func run(ctx context.Context, address, endpoint string) error {
	name, err := driverName(ctx, address)
	if err != nil {
		return err
	}
	socket := filepath.Join(folder, name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	refused := make(chan error, 1)
	rpc := grpc.NewServer()
	registration.RegisterRegistrationServer(
		rpc, &server{driver: name, endpoint: endpoint, refused: refused})
	served := make(chan error, 1)
	go func() { served <- rpc.Serve(listener) }()
	fmt.Println("registering", name)
	select {
	case err = <-refused: // as csi-node-driver-registrar: end, and be started again
	case err = <-served:
	case <-ctx.Done():
	}
	rpc.Stop()
	return err
}

// driverName asks the driver for its name, and waits while its socket does not exist.
func driverName(ctx context.Context, address string) (string, error) {
	connection, err := grpc.NewClient(
		"unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer connection.Close()
	limited, cancel := context.WithTimeout(ctx, pluginReply)
	defer cancel()
	info, err := csi.NewIdentityClient(connection).GetPluginInfo(
		limited, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	return info.GetName(), err
}

// GetInfo names the driver and its socket.
func (s *server) GetInfo(
	context.Context, *registration.InfoRequest,
) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              s.driver,
		Endpoint:          s.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus ends the program when kubelet refuses the driver.
func (s *server) NotifyRegistrationStatus(
	_ context.Context, status *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	fmt.Println("registered:", status.PluginRegistered, status.Error)
	if !status.PluginRegistered {
		select {
		case s.refused <- fmt.Errorf("kubelet refused the driver: %s", status.Error):
		default:
		}
	}
	return &registration.RegistrationStatusResponse{}, nil
}
