// Command containerd-shim-runc-v2 is the unmodified runc shim. It is a binary of
// its own, not an applet of a larger one, because one runs for every pod and each
// linked package costs memory in every VM.
package main

import (
	"context"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task/plugin"
	"github.com/containerd/containerd/v2/pkg/shim"
)

func main() {
	shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.runc.v2"))
}
