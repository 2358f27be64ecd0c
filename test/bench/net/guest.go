package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// guest is a tiny guest behind its serial port.
type guest struct {
	serial  net.Conn
	address netip.Addr
}

// shellPrompt is what the tiny guest's shell prints.
const shellPrompt = "tiny:~# "

// bootTimeout bounds every wait for the guest.
const bootTimeout = 10 * time.Minute

// openGuest takes over the serial port behind a unix socket and waits for the shell.
func openGuest(ctx context.Context, socket string) (*guest, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			g := &guest{serial: conn}
			return g, g.awaitShell(ctx)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("open the serial port: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// awaitShell presses the enter key until somebody answers.
func (g *guest) awaitShell(ctx context.Context) error {
	for ctx.Err() == nil {
		if _, err := g.serial.Write([]byte("\r")); err != nil {
			return fmt.Errorf("type: %w", err)
		}
		if _, err := g.readUntil(shellPrompt, time.Second); err == nil {
			return nil
		}
	}
	return errors.New("the guest's shell does not answer")
}

func (g *guest) readUntil(mark string, patience time.Duration) (string, error) {
	_ = g.serial.SetReadDeadline(time.Now().Add(patience))
	var said bytes.Buffer
	buffer := make([]byte, 4096)
	for !bytes.Contains(said.Bytes(), []byte(mark)) {
		n, err := g.serial.Read(buffer)
		said.Write(buffer[:n])
		if err != nil {
			return said.String(), fmt.Errorf("wait for %q: %w", mark, err)
		}
	}
	return said.String(), nil
}

// do runs a command in the guest's shell.
func (g *guest) do(command string) error {
	if _, err := g.serial.Write([]byte(command + " && echo all''well || echo it''failed\r")); err != nil {
		return fmt.Errorf("type: %w", err)
	}
	said, err := g.readUntil("allwell", bootTimeout)
	if err != nil {
		return fmt.Errorf("%s: %w: %q", command, err, said)
	}
	return nil
}

// prepare makes the file to be downloaded and starts the sink.
func (g *guest) prepare() error {
	if err := g.do(fmt.Sprintf("dd if=/dev/zero of=/www/big bs=1M count=%d", bigBytes>>20)); err != nil {
		return err
	}
	return g.do(fmt.Sprintf("(while :; do nc -l -p %d >/dev/null </dev/null; done >/dev/null 2>&1 &)", sinkPort))
}
