package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"
)

// Ports of the guest.
const (
	webPort  = 8080 // the tiny guest's web server
	sinkPort = 5001 // reads and throws away, see guest.prepare
	noPort   = 9    // nobody listens
)

const (
	// bigBytes is the file that is downloaded; uploads send as much.
	bigBytes = 64 << 20
	// trips is how many round trips make one measurement.
	trips = 300
	// transferTimeout bounds one transfer.
	transferTimeout = 2 * time.Minute
)

// dialer connects from where the guest's node is.
type dialer func(ctx context.Context, address string) (net.Conn, error)

func at(address netip.Addr, port int) string {
	return net.JoinHostPort(address.String(), strconv.Itoa(port))
}

// download reads the big file and returns bytes per second.
func download(ctx context.Context, dial dialer, guest netip.Addr) (float64, error) {
	conn, err := dialPatiently(ctx, dial, at(guest, webPort))
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(transferTimeout))
	if _, err := io.WriteString(conn, "GET /big HTTP/1.0\r\n\r\n"); err != nil {
		return 0, err
	}
	buffer := make([]byte, 1<<20)
	first, err := conn.Read(buffer) // what the server needs to begin is not the network's
	if err != nil {
		return 0, err
	}
	began := time.Now()
	rest, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, buffer)
	took := time.Since(began)
	if err != nil {
		return 0, err
	}
	if int64(first)+rest < bigBytes {
		return 0, fmt.Errorf("got %d of %d bytes", int64(first)+rest, bigBytes)
	}
	return float64(rest) / took.Seconds(), nil
}

// upload sends as much and waits until the guest has read it all.
func upload(ctx context.Context, dial dialer, guest netip.Addr) (float64, error) {
	conn, err := dialPatiently(ctx, dial, at(guest, sinkPort))
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(transferTimeout))
	chunk := make([]byte, 1<<20)
	began := time.Now()
	for sent := 0; sent < bigBytes; sent += len(chunk) {
		if _, err := conn.Write(chunk); err != nil {
			return 0, err
		}
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return 0, err
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("wait for the guest to close: %w", err)
	}
	return bigBytes / time.Since(began).Seconds(), nil
}

// dialPatiently tries until the guest listens: its web server may be starting, and its
// sink serves one connection after another.
func dialPatiently(ctx context.Context, dial dialer, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, transferTimeout)
	defer cancel()
	for {
		conn, err := dial(ctx, address)
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// roundTrip is the median time from a SYN to the refusal of the guest's kernel: no
// program of the guest has a part in it.
func roundTrip(ctx context.Context, dial dialer, guest netip.Addr) (time.Duration, error) {
	all := make([]time.Duration, 0, trips)
	for range trips {
		began := time.Now()
		conn, err := dial(ctx, at(guest, noPort))
		took := time.Since(began)
		if err == nil {
			_ = conn.Close()
			return 0, errors.New("somebody listens on the discard port")
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return 0, err
		}
		all = append(all, took)
	}
	return median(all), nil
}
