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
	// end stops what it runs in.
	end func()
}

// prepare connects to the serial line as soon as there is one, waits for the guest and
// mounts fio.
func (g *guest) prepare(ctx context.Context, socket string) error {
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	var d net.Dialer
	for g.conn == nil {
		conn, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			g.conn, g.lines = conn, bufio.NewScanner(conn)
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("connect to serial line: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	context.AfterFunc(whole, func() { _ = g.conn.Close() }) // nobody waits for it any more
	_ = g.conn.SetDeadline(time.Now().Add(bootTime))
	if _, err := g.until(userspace); err != nil {
		return err
	}
	_, err := g.command(setup, ended+"setup")
	return err
}

func (g *guest) stop() {
	if g.conn != nil {
		_ = g.conn.Close()
	}
	g.end()
}

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

// setup mounts the disk with fio. The words to wait for are put together by the guest,
// so that the echo of a command is none of them.
const setup = `e=ended; disk() { for d in /sys/block/sd*; do grep -aq "$1" $d/device/vpd_pg80 && echo /dev/${d##*/}; done; }; ` +
	`mkdir -p /mnt; until mount -t ext4 -o ro $(disk ` + toolsDisk + `) /mnt; do sleep 0.2; done; ` +
	`mount -o bind /dev /mnt/dev; mount -t proc proc /mnt/proc; mount -t tmpfs tmp /mnt/tmp; echo bench-$e-setup`

// measure runs fio on a disk and adds its figures.
func (g *guest) measure(o options, disk string, all results) error {
	patience := workTime + time.Duration(len(kinds)*(o.seconds+1))*time.Second
	_ = g.conn.SetDeadline(time.Now().Add(patience))
	command := fmt.Sprintf("DISK=$(disk %s) SECONDS=%d chroot /mnt /usr/bin/fio --output-format=terse --terse-version=3 /jobs.fio; echo bench-$e-$?", disk, o.seconds)
	lines, err := g.command(command, ended)
	if err != nil {
		return err
	}
	if err := parse(lines, disk, all); err != nil {
		return fmt.Errorf("%w in:\n%s", err, strings.Join(lines, "\n"))
	}
	return nil
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
func parse(lines []string, disk string, all results) error {
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
			all[disk+" "+k.job], found = append(all[disk+" "+k.job], figure), true
		}
		if !found {
			return fmt.Errorf("no figure of job %s on disk %s", k.job, disk)
		}
	}
	return nil
}
