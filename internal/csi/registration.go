package csi

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// registrar tells the kubelet, which watches a folder for sockets, where the
// driver's own socket is.
type registrar struct {
	registration.UnimplementedRegistrationServer

	endpoint string
	log      *slog.Logger
	refused  chan<- string
}

// Register serves the kubelet's plugin registration in folder dir until the
// context ends. The endpoint is the driver's socket as a path on the node. If the
// kubelet refuses the driver, Register returns an error, so that the process ends
// and registers anew.
func Register(ctx context.Context, dir, endpoint string, log *slog.Logger) error {
	socket := filepath.Join(dir, DriverName+"-reg.sock")
	l, err := listenUnix(ctx, socket)
	if err != nil {
		return err
	}
	defer os.Remove(socket)
	refused := make(chan string, 1)
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &registrar{endpoint: endpoint, log: log, refused: refused})
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	defer server.Stop()
	select {
	case <-ctx.Done():
		return nil
	case why := <-refused:
		return fmt.Errorf("register with kubelet: refused: %s", why)
	case err := <-failed:
		return fmt.Errorf("serve registration: %w", err)
	}
}

// GetInfo describes the driver to the kubelet.
func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: DriverName, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus receives the kubelet's answer.
func (r *registrar) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if s.GetPluginRegistered() {
		r.log.Info("registered with kubelet")
		return &registration.RegistrationStatusResponse{}, nil
	}
	select {
	case r.refused <- s.GetError():
	default:
	}
	return &registration.RegistrationStatusResponse{}, nil
}
