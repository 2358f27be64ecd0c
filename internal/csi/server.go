package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Services are what one process serves; a nil one is left out.
type Services struct {
	Controller *Controller
	Node       *Node
}

// Serve listens on a unix socket until the context ends, then finishes the calls
// under way.
func Serve(ctx context.Context, socket string, s Services, log *slog.Logger) error {
	l, err := listenUnix(ctx, socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(logCalls(log)))
	csi.RegisterIdentityServer(server, Identity{})
	if s.Controller != nil {
		csi.RegisterControllerServer(server, s.Controller)
	}
	if s.Node != nil {
		csi.RegisterNodeServer(server, s.Node)
	}
	stop := context.AfterFunc(ctx, server.GracefulStop)
	defer stop()
	log.Info("serving", "socket", socket)
	if err := server.Serve(l); err != nil {
		return fmt.Errorf("serve on %s: %w", socket, err)
	}
	return nil
}

// listenUnix replaces the socket of a former process.
func listenUnix(ctx context.Context, socket string) (net.Listener, error) {
	socket = strings.TrimPrefix(socket, "unix://")
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return nil, fmt.Errorf("make socket folder: %w", err)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

// logCalls logs what changes something, and what fails for a reason of ours.
func logCalls(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		out, err := handle(ctx, req)
		method := info.FullMethod[strings.LastIndex(info.FullMethod, "/")+1:]
		attrs := []any{"call", method}
		if v, ok := req.(interface{ GetVolumeId() string }); ok {
			attrs = append(attrs, "volume", v.GetVolumeId())
		}
		if v, ok := req.(interface{ GetName() string }); ok {
			attrs = append(attrs, "name", v.GetName())
		}
		switch {
		case err == nil && readOnlyCall(method):
		case err == nil:
			log.Info("done", attrs...)
		case status.Code(err) == codes.Internal:
			log.Error("failed", append(attrs, "error", err)...)
		default:
			log.Warn("refused", append(attrs, "error", err)...)
		}
		return out, err
	}
}

func readOnlyCall(method string) bool {
	for _, part := range []string{"Get", "List", "Probe", "Validate"} {
		if strings.Contains(method, part) {
			return true
		}
	}
	return false
}
