package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"orlop.dev/orlop/internal/cluster/box"
	"orlop.dev/orlop/internal/version"
)

// Status is what "d8 cluster status" shows. It is an interface: scripts read its JSON.
type Status struct {
	Name              string    `json:"name"`
	Version           string    `json:"version"`
	StateDir          string    `json:"stateDir"`
	KubeconfigContext string    `json:"kubeconfigContext"`
	Server            string    `json:"server"`
	Addresses         Addresses `json:"addresses"`
	// HostAddress is this machine's address on the cluster's bridge, where boxes and pods reach it.
	HostAddress string      `json:"hostAddress"`
	Boxes       []BoxStatus `json:"boxes"`
}

// BoxStatus is one box now.
type BoxStatus struct {
	Name    string `json:"name"`
	Role    string `json:"role"` // "control" or "node"
	Address string `json:"address"`
	Running bool   `json:"running"`
	// PID is the init's process number on the host, 0 if the box does not run.
	PID        int                   `json:"pid"`
	Components []box.ComponentStatus `json:"components,omitempty"`
}

// Status looks at the cluster.
func (c *Cluster) Status(ctx context.Context) (*Status, error) {
	if c.state == nil {
		return nil, c.missing()
	}
	s := &Status{
		Name: c.name, Version: c.state.Version, StateDir: c.dir, KubeconfigContext: contextName(c.name),
		Server: c.server(), Addresses: c.state.Addresses, HostAddress: c.state.Addresses.gateway().String(),
	}
	if s.Version == "" {
		s.Version = version.Version()
	}
	for _, name := range c.state.boxNames() {
		b := BoxStatus{Name: name, Role: "control", Address: c.state.Addresses.control().String()}
		if n := c.boxNumber(name); n > 0 {
			b.Role, b.Address = "node", c.state.Addresses.node(n).String()
		}
		if ref := c.state.Boxes[name]; ref.alive() {
			b.Running, b.PID = true, ref.PID
			status, err := box.GetStatus(ctx, c.boxDir(name))
			if err != nil {
				return nil, fmt.Errorf("ask box %s: %w", name, err)
			}
			b.Components = status.Components
		}
		s.Boxes = append(s.Boxes, b)
	}
	return s, nil
}

// Restart restarts one component of a box.
func (c *Cluster) Restart(ctx context.Context, boxName, component string) error {
	if c.state == nil {
		return c.missing()
	}
	return box.Restart(ctx, c.boxDir(boxName), component)
}

// LogNames lists the components of a box that have a log.
func (c *Cluster) LogNames(boxName string) ([]string, error) {
	files, err := filepath.Glob(box.LogFile(c.boxDir(boxName), "*"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, file := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".log"))
	}
	slices.Sort(names)
	return names, nil
}

// Logs writes the last lines of a component's output (all of the current file if
// lines is negative) and, with follow, what comes after until ctx is done.
func (c *Cluster) Logs(ctx context.Context, out io.Writer, boxName, component string, lines int, follow bool) error {
	if c.state == nil {
		return c.missing()
	}
	if !slices.Contains(c.state.boxNames(), boxName) {
		return fmt.Errorf("no box %q in cluster %s; there are %s", boxName, c.name, strings.Join(c.state.boxNames(), ", "))
	}
	path := box.LogFile(c.boxDir(boxName), component)
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		names, err := c.LogNames(boxName)
		return errors.Join(err, fmt.Errorf("no log of %q in box %s; there are %s", component, boxName, strings.Join(names, ", ")))
	} else if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer func() { _ = file.Close() }()
	if err := skipToLast(file, lines); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	for {
		if _, err := io.Copy(out, file); err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
		if next := replaced(file, path); next != nil {
			_ = file.Close()
			file = next
		}
	}
}

// replaced opens the new file if the old one was put aside.
func replaced(file *os.File, path string) *os.File {
	now, err := os.Stat(path)
	if err != nil {
		return nil
	}
	if was, err := file.Stat(); err != nil || os.SameFile(now, was) {
		return nil
	}
	next, err := os.Open(path)
	if err != nil {
		return nil
	}
	return next
}

// skipToLast leaves the file before its last n lines; all lines if n is negative.
func skipToLast(file *os.File, n int) error {
	if n < 0 {
		return nil
	}
	end, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	const chunk = 64 << 10
	buffer := make([]byte, chunk)
	for position := end; position > 0; {
		size := min(chunk, position)
		position -= size
		if _, err := file.ReadAt(buffer[:size], position); err != nil {
			return err
		}
		for i := size - 1; i >= 0; i-- {
			if buffer[i] != '\n' || position+i == end-1 {
				continue
			}
			if n--; n == 0 {
				_, err := file.Seek(position+i+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = file.Seek(0, io.SeekStart)
	return err
}

// explain prints the last lines of the logs that likely say why something failed.
func (c *Cluster) explain(e *explainedError) {
	const tail = 12
	for _, component := range append([]string{}, e.components...) {
		file, err := os.Open(box.LogFile(c.boxDir(e.box), component))
		if err != nil {
			continue
		}
		if err := skipToLast(file, tail); err == nil {
			c.progress.note("last lines of %s in box %s:", component, e.box)
			lines := bufio.NewScanner(file)
			for lines.Scan() {
				c.progress.note("    %s", lines.Text())
			}
		}
		_ = file.Close()
	}
	c.progress.note("more: d8 cluster logs --name %s %s %s", c.name, e.box, strings.Join(e.components[:1], " "))
}
