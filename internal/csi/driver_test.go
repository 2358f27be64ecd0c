package csi

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"orlop.dev/orlop/internal/loopdev"
)

// driver is a store with a controller and two nodes, served for a test.
type driver struct {
	dir, root, socket string
	store             *Store
	controller        csi.ControllerClient
	node              csi.NodeClient // node "one"
	nodeTwo           *Node
}

// startDriver starts a driver on a fresh store; nothing of it is left afterwards.
func startDriver(t *testing.T) *driver {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loop devices and mounts")
	}
	d := &driver{dir: t.TempDir()}
	d.root = filepath.Join(d.dir, "root")
	if err := os.Mkdir(d.root, 0o700); err != nil {
		t.Fatal(err)
	}
	store, err := OpenStore(d.root)
	if err != nil {
		t.Fatalf("OpenStore: %v", err)
	}
	t.Cleanup(func() { closeStore(t, d.root) })
	d.store = store
	c, err := NewController(store, 4)
	if err != nil {
		t.Fatalf("NewController: %v", err)
	}
	n, err := NewNode(store, "one")
	if err != nil {
		t.Fatalf("NewNode: %v", err)
	}
	if d.nodeTwo, err = NewNode(store, "two"); err != nil {
		t.Fatalf("NewNode: %v", err)
	}
	d.socket = filepath.Join(d.dir, "csi.sock")
	serve(t, d.socket, Services{Controller: c, Node: n})
	conn, err := grpc.NewClient("unix://"+d.socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	d.controller, d.node = csi.NewControllerClient(conn), csi.NewNodeClient(conn)
	return d
}

func serve(t *testing.T, socket string, s Services) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, socket, s, slog.New(slog.NewTextHandler(io.Discard, nil))) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func closeStore(t *testing.T, root string) {
	t.Helper()
	if err := CloseStore(root); err != nil {
		t.Errorf("CloseStore: %v", err)
	}
	if err := DetachAll(root); err != nil {
		t.Errorf("DetachAll: %v", err)
	}
	image := filepath.Join(root, backingFile)
	if _, err := os.Stat(image); err != nil {
		return
	}
	if d, err := loopdev.Find(image); err != nil || d != nil {
		t.Errorf("after DetachAll the backing image is still attached to %v (%v)", d, err)
	}
}
