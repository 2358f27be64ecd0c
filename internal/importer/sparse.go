package importer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const sparseBlock = 64 << 10

var errOverLimit = errors.New("more bytes than allowed")

// sparseFile writes a file and leaves out blocks of zeros.
type sparseFile struct {
	f *os.File
	// size is how much came, stored how much of it was written; both in bytes.
	size, stored int64
	// maxSize and maxStored bound them.
	maxSize, maxStored int64

	block []byte
	zeros []byte
}

func createSparse(path string, maxSize, maxStored int64) (*sparseFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o660)
	if err != nil {
		return nil, noRoom(err, "create file")
	}
	return &sparseFile{
		f: f, maxSize: maxSize, maxStored: maxStored,
		block: make([]byte, 0, sparseBlock), zeros: make([]byte, sparseBlock),
	}, nil
}

// Write implements io.Writer.
func (s *sparseFile) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), sparseBlock-len(s.block))
		s.block = append(s.block, p[:n]...)
		p, written = p[n:], written+n
		if len(s.block) == sparseBlock {
			if err := s.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

func (s *sparseFile) flush() error {
	n := int64(len(s.block))
	if s.size+n > s.maxSize {
		return errOverLimit
	}
	if !bytes.Equal(s.block, s.zeros[:n]) {
		if s.stored+n > s.maxStored {
			return errOverLimit
		}
		if _, err := s.f.WriteAt(s.block, s.size); err != nil {
			return noRoom(err, "write file")
		}
		s.stored += n
	}
	s.size += n
	s.block = s.block[:0]
	return nil
}

// finish writes the rest, sets the length and, if asked, waits for the disk.
func (s *sparseFile) finish(sync bool) error {
	if err := s.flush(); err != nil {
		return err
	}
	if err := s.f.Truncate(s.size); err != nil {
		return noRoom(err, "size file")
	}
	if sync {
		if err := s.f.Sync(); err != nil {
			return noRoom(err, "sync file")
		}
	}
	if err := s.f.Close(); err != nil {
		return noRoom(err, "close file")
	}
	return nil
}

// Close gives up; the file is left to the caller.
func (s *sparseFile) Close() error { return s.f.Close() }

// noRoom tells a full file system from other errors.
func noRoom(err error, doing string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fail(ReasonVolumeFull, err, "There is no room left to %s", doing)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

var _ io.Writer = (*sparseFile)(nil)
