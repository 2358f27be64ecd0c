package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// What the tiny guest says.
const (
	userspace = "orlop-tiny: userspace up"
	ended     = "bench-ended-"
)

// guest is the tiny guest at its serial line.
type guest struct {
	conn  net.Conn
	lines *bufio.Scanner
}

// talk connects to a serial line as soon as there is one and waits for the guest.
func talk(ctx context.Context, socket string) (*guest, error) {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			g := &guest{conn: conn, lines: bufio.NewScanner(conn)}
			deadline, _ := ctx.Deadline()
			_ = conn.SetDeadline(deadline)
			_, err := g.until(userspace)
			return g, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to serial line: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (g *guest) close() { _ = g.conn.Close() }

// until reads lines up to one that has a text in it, and returns all.
func (g *guest) until(text string) ([]string, error) {
	var all []string
	for g.lines.Scan() {
		line := g.lines.Text()
		all = append(all, line)
		if strings.Contains(line, text) {
			return all, nil
		}
	}
	return nil, fmt.Errorf("the guest has not said %q, but: %s: %w", text, strings.Join(all[max(0, len(all)-20):], "\n"), g.lines.Err())
}

// measure runs fio on each disk. The words to wait for are put together by the guest,
// so that the echo of the commands is none of them.
func (g *guest) measure(o options) (map[string]float64, error) {
	setup := `e=ended; disk() { for d in /sys/block/sd*; do grep -aq "$1" $d/device/vpd_pg80 && echo /dev/${d##*/}; done; }; ` +
		`mkdir -p /mnt; until mount -t ext4 -o ro $(disk ` + toolsDisk + `) /mnt; do sleep 0.2; done; ` +
		`mount -o bind /dev /mnt/dev; mount -t proc proc /mnt/proc; mount -t tmpfs tmp /mnt/tmp; echo bench-$e-setup`
	if _, err := g.command(setup, ended+"setup"); err != nil {
		return nil, err
	}
	figures := map[string]float64{}
	for _, disk := range disks {
		command := fmt.Sprintf("DISK=$(disk %s) SECONDS=%d chroot /mnt /usr/bin/fio --output-format=terse --terse-version=3 /jobs.fio; echo bench-$e-$?", disk, o.seconds)
		lines, err := g.command(command, ended)
		if err != nil {
			return nil, err
		}
		if err := parse(lines, disk, figures); err != nil {
			return nil, fmt.Errorf("%w in:\n%s", err, strings.Join(lines, "\n"))
		}
	}
	return figures, nil
}

func (g *guest) command(line, mark string) ([]string, error) {
	if _, err := g.conn.Write([]byte("\n" + line + "\n")); err != nil {
		return nil, fmt.Errorf("write to serial line: %w", err)
	}
	return g.until(mark)
}

// Places in a line of fio's terse format, version 3.
const (
	terseJob, terseError           = 2, 4
	terseReadRate, terseReadIOPS   = 6, 7
	terseWriteRate, terseWriteIOPS = 47, 48
	terseFields                    = 100
)

// parse reads fio's lines.
func parse(lines []string, disk string, figures map[string]float64) error {
	for _, k := range kinds {
		place := map[[2]bool]int{{true, true}: terseWriteRate, {true, false}: terseReadRate, {false, true}: terseWriteIOPS, {false, false}: terseReadIOPS}[[2]bool{k.throughput, k.write}]
		found := false
		for _, line := range lines {
			fields := strings.Split(strings.TrimSpace(line), ";")
			if len(fields) < terseFields || fields[terseJob] != k.job {
				continue
			}
			figure, err := strconv.ParseFloat(fields[place], 64)
			if err != nil || fields[terseError] != "0" || figure <= 0 {
				return fmt.Errorf("job %s on disk %s failed", k.job, disk)
			}
			figures[disk+" "+k.job], found = figure, true
		}
		if !found {
			return fmt.Errorf("no figure of job %s on disk %s", k.job, disk)
		}
	}
	return nil
}
