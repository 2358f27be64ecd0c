package main

import (
	"archive/tar"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// entry is one file of an archive, with its content somewhere in a larger file.
type entry struct {
	header  tar.Header
	content *io.SectionReader // nil unless a regular file
}

// tree is an archive by absolute path ("/usr/bin/sh").
type tree map[string]entry

// openTree indexes an uncompressed tar file. The caller closes the file after its
// last use of the tree.
func openTree(file *os.File) (tree, error) {
	files := tree{}
	position := &counter{reader: file}
	archive := tar.NewReader(position)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file.Name(), err)
		}
		name := path.Join("/", header.Name) //nolint:gosec // Rooted by Join, and only a key.
		e := entry{header: *header}
		switch header.Typeflag {
		case tar.TypeReg:
			e.content = io.NewSectionReader(file, position.offset, header.Size)
		case tar.TypeLink:
			// A hard link is a second name of what came before it.
			e = files[path.Join("/", header.Linkname)] //nolint:gosec // Only a key.
		}
		files[name] = e
	}
}

// counter knows how far its reader has been read. It does not implement io.Seeker,
// so that the tar reader reads what it skips.
type counter struct {
	reader io.Reader
	offset int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.reader.Read(p)
	c.offset += int64(n)
	return n, err
}

// resolve follows symbolic links in every part of a path and returns the real path
// and the links passed on the way. Missing files end the walk with their own path.
func (t tree) resolve(name string) (real string, links []string) {
	pending := strings.Split(strings.Trim(path.Clean(name), "/"), "/")
	current := "/"
	for steps := 0; len(pending) > 0 && steps < 255; steps++ {
		next := path.Join(current, pending[0])
		pending = pending[1:]
		e, ok := t[next]
		if !ok || e.header.Typeflag != tar.TypeSymlink {
			current = next
			continue
		}
		links = append(links, next)
		target := e.header.Linkname
		if !path.IsAbs(target) {
			target = path.Join(current, target)
		}
		pending = append(strings.Split(strings.Trim(target, "/"), "/"), pending...)
		current = "/"
	}
	return current, links
}

// libraryDirs is where Debian's dynamic loader looks without a cache file.
var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64"}

// libraries names what the dynamic loader needs to run a file: its interpreter and
// libraries, as paths to resolve. A file that is not an ELF program needs nothing.
func (t tree) libraries(name string) ([]string, error) {
	e := t[name]
	if e.content == nil {
		return nil, nil
	}
	program, err := elf.NewFile(io.NewSectionReader(e.content, 0, e.content.Size()))
	if err != nil {
		return nil, nil // Not an ELF file: a script, a ROM, a certificate.
	}
	defer program.Close()
	var needed []string
	if section := program.Section(".interp"); section != nil {
		interpreter, err := section.Data()
		if err != nil {
			return nil, fmt.Errorf("read interpreter of %s: %w", name, err)
		}
		needed = append(needed, strings.TrimRight(string(interpreter), "\x00"))
	}
	sonames, err := program.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("read libraries of %s: %w", name, err)
	}
	runpaths, _ := program.DynString(elf.DT_RUNPATH)
	for _, soname := range sonames {
		found, err := t.library(soname, runpaths)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		needed = append(needed, found)
	}
	return needed, nil
}

func (t tree) library(soname string, runpaths []string) (string, error) {
	for _, dir := range append(runpaths, libraryDirs...) {
		candidate := path.Join(dir, soname)
		if real, _ := t.resolve(candidate); t[real].content != nil {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("find library %s", soname)
}
