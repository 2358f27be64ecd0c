package main

import (
	"bufio"
	"fmt"
	"io"
)

// cpioWriter writes the archive format ("newc") that Linux unpacks as its first file
// system. Everything belongs to root and has no time. The first error sticks and is
// returned by close.
type cpioWriter struct {
	out    *bufio.Writer
	offset int
	inode  int
	err    error
}

func newCpio(w io.Writer) *cpioWriter { return &cpioWriter{out: bufio.NewWriter(w)} }

// File types of the mode field.
const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
	cpioLink = 0o120000
)

func (w *cpioWriter) dir(name string) { w.entry(name, cpioDir|0o755, nil) }

func (w *cpioWriter) link(name, target string) { w.entry(name, cpioLink|0o777, []byte(target)) }

func (w *cpioWriter) file(name string, mode int, content []byte) {
	w.entry(name, cpioFile|mode, content)
}

func (w *cpioWriter) entry(name string, mode int, content []byte) {
	w.inode++
	if name != cpioTrailer {
		name = name[1:]
	}
	// Magic, inode, mode, uid, gid, links, time, size, device, special device, name length, checksum.
	w.bytes(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		w.inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0))
	w.bytes(append([]byte(name), 0))
	w.pad()
	w.bytes(content)
	w.pad()
}

const cpioTrailer = "TRAILER!!!"

func (w *cpioWriter) close() error {
	w.entry(cpioTrailer, 0, nil)
	if w.err != nil {
		return w.err
	}
	return w.out.Flush()
}

func (w *cpioWriter) pad() {
	for w.offset%4 != 0 && w.err == nil {
		w.bytes([]byte{0})
	}
}

func (w *cpioWriter) bytes(p []byte) {
	if w.err != nil {
		return
	}
	n, err := w.out.Write(p)
	w.offset += n
	w.err = err
}
