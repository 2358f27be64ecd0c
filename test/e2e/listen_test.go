//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
)

// listen opens a free TCP port on the host's address in the cluster's network.
func listen(host string) (net.Listener, error) {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", host, err)
	}
	return listener, nil
}
