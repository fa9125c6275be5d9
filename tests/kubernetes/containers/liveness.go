package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	probeTimeout  = 4 * time.Second // kubelet waits 5 s
	headerTimeout = 10 * time.Second
)

// newLiveness returns the command that answers kubelet's HTTP probe by Identity.Probe, with the
// arguments of livenessprobe that the chart sets.
func newLiveness() *cobra.Command {
	var address string
	var port int
	command := &cobra.Command{
		Use:          "liveness",
		SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error {
			return serveLiveness(address, port)
		},
	}
	command.Flags().StringVar(&address, "csi-address", "", "socket of the driver")
	command.Flags().IntVar(&port, "health-port", 0, "port of /healthz")
	return command
}

func serveLiveness(address string, port int) error {
	connection, err := grpc.NewClient(
		"unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	identity := csi.NewIdentityClient(connection)
	http.HandleFunc("/healthz", func(reply http.ResponseWriter, request *http.Request) {
		limited, cancel := context.WithTimeout(request.Context(), probeTimeout)
		defer cancel()
		answer, err := identity.Probe(limited, &csi.ProbeRequest{})
		if err != nil || !answer.GetReady().GetValue() {
			reply.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintln(reply, "not ready:", err)
			return
		}
		fmt.Fprintln(reply, "ok")
	})
	server := http.Server{Addr: fmt.Sprintf(":%d", port), ReadHeaderTimeout: headerTimeout}
	return server.ListenAndServe()
}
