package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// defaultMirror serves every Debian release; used where the machine's own apt
// sources are another distribution's.
const (
	defaultMirror         = "http://deb.debian.org/debian"
	defaultSecurityMirror = "http://deb.debian.org/debian-security"
)

// debianReleases are the names under which a source list can name Debian itself;
// anything else (Ubuntu, vendors' repositories) says nothing about mirrors.
var debianReleases = map[string]bool{
	"bullseye": true, "bookworm": true, "trixie": true, "forky": true, "sid": true,
	"oldstable": true, "stable": true, "testing": true, "unstable": true,
}

// sources returns the apt source lines for the suite, from the mirrors that the
// machine itself uses. Security updates are part of it.
func sources(ctx context.Context) []string {
	// A machine without apt falls back to the defaults, like one with foreign sources.
	targets, _ := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages").Output()
	mirror, security := mirrors(targets)
	return []string{
		fmt.Sprintf("deb %s %s main", mirror, suite),
		fmt.Sprintf("deb %s %s-security main", security, suite),
	}
}

// mirrors finds the machine's Debian mirrors in lines "site release component".
func mirrors(targets []byte) (mirror, security string) {
	lines := bufio.NewScanner(bytes.NewReader(targets))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || fields[2] != "main" {
			continue
		}
		release, kind, _ := strings.Cut(fields[1], "-")
		switch {
		case !debianReleases[release]:
		case kind == "" && mirror == "":
			mirror = fields[0]
		case kind == "security" && security == "":
			security = fields[0]
		}
	}
	if mirror == "" {
		mirror = defaultMirror
	}
	if security == "" {
		security = defaultSecurityMirror
	}
	return mirror, security
}

// proxies returns the machine's apt options that say how to reach a mirror, in
// apt.conf syntax. mmdebstrap does not read the machine's configuration by itself.
func proxies(ctx context.Context) []string {
	dump, _ := exec.CommandContext(ctx, "apt-config", "dump", "Acquire").Output()
	var options []string
	lines := bufio.NewScanner(bytes.NewReader(dump))
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), " ")
		if ok && value != `"";` && (strings.Contains(key, "::Proxy") || strings.HasSuffix(key, "::CAInfo")) {
			options = append(options, key+" "+value)
		}
	}
	return options
}
