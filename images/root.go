package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// epoch is the modification time of everything in an image and what Debian's tools
// take for "now", in seconds since 1970 (2025-01-01).
const epoch = 1735689600

// Root is a Debian file system made by mmdebstrap.
type Root struct {
	Name     string
	Variant  string   // of mmdebstrap
	Packages []string // beyond those of the variant
	Hooks    []string // customize hooks: shell commands with the root as $1
	Include  []byte   // whatever else the hooks read, so that it counts for the key
}

// archive returns the root as a cached tar file, made if it is not there.
func (r Root) archive(ctx context.Context, cache Cache) (string, error) {
	key := digestOf("root", suite, r.Variant, r.Packages, r.Hooks, r.Include, epoch)
	return cache.file(r.Name+"-"+key+".tar", func(path string) error {
		fmt.Fprintf(os.Stderr, "images: unpacking Debian %s for %s\n", suite, r.Name)
		return r.bootstrap(ctx, path)
	})
}

func (r Root) bootstrap(ctx context.Context, path string) error {
	arguments := []string{"--quiet", "--mode=root", "--format=tar", "--variant=" + r.Variant, "--architectures=amd64",
		`--aptopt=APT::Install-Recommends "false"`, `--aptopt=Acquire::Languages "none"`, `--aptopt=Acquire::Retries "5"`,
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright"}
	for _, option := range proxies(ctx) {
		arguments = append(arguments, "--aptopt="+option)
	}
	for _, name := range r.Packages {
		arguments = append(arguments, "--include="+name)
	}
	for _, hook := range r.Hooks {
		arguments = append(arguments, "--customize-hook="+hook)
	}
	arguments = append(arguments, suite, path)
	return runLogged(exec.CommandContext(ctx, "mmdebstrap", append(arguments, sources(ctx)...)...))
}

// runLogged runs a command and shows what it printed only if it fails.
func runLogged(command *exec.Cmd) error {
	command.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.Itoa(epoch), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	output, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s: %w\n%s", filepath.Base(command.Path), err, output)
	}
	return nil
}

// Cache keeps what is expensive to make, under names that contain a digest of all
// inputs: an entry is never wrong, only unused.
type Cache struct{ Dir string }

// file returns the path of an entry and makes it first if it is missing. A made
// entry appears at once, so a build that dies leaves no half of it.
func (c Cache) file(name string, fill func(path string) error) (string, error) {
	path := filepath.Join(c.Dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", err
	}
	scratch, err := os.MkdirTemp(c.Dir, ".making-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	made := filepath.Join(scratch, name)
	if err := fill(made); err != nil {
		return "", err
	}
	return path, os.Rename(made, path)
}

// linkOrCopy makes the same bytes available at another path, for nothing where both
// are on one file system.
func linkOrCopy(from, to string) error {
	if err := os.Link(from, to); err == nil {
		return nil
	}
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	defer target.Close()
	if _, err := io.Copy(target, source); err != nil {
		return err
	}
	return target.Close()
}
