package importer

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

const (
	// windowLimit bounds the memory of a decompressor, in bytes.
	windowLimit = 128 << 20
	peekSize    = 64
)

// unpacker returns the content of a stream, decompressed if it is compressed.
func unpacker(in io.Reader) (io.Reader, func(), error) {
	b := bufio.NewReaderSize(in, 256<<10)
	head, err := b.Peek(peekSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	nothing := func() {}
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, &badStream{"gzip", err}
		}
		return &unpacked{z, "gzip"}, nothing, nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		if dictionary(head) > windowLimit {
			return nil, nil, fail(ReasonTooLarge, nil, "The xz file needs %d MiB of memory to unpack; the limit is %d MiB", dictionary(head)>>20, windowLimit>>20)
		}
		z, err := xz.NewReader(b)
		if err != nil {
			return nil, nil, &badStream{"xz", err}
		}
		return &unpacked{z, "xz"}, nothing, nil
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(windowLimit))
		if err != nil {
			return nil, nil, &badStream{"zstd", err}
		}
		return &unpacked{z, "zstd"}, z.Close, nil
	}
	return b, nothing, nil
}

// badStream is an error of the compressed data, as against one of the transfer.
type badStream struct {
	kind  string
	cause error
}

func (e *badStream) Error() string { return e.kind + ": " + e.cause.Error() }
func (e *badStream) Unwrap() error { return e.cause }

// unpacked marks the errors of a decompressor.
type unpacked struct {
	io.Reader

	kind string
}

func (u *unpacked) Read(p []byte) (int, error) {
	n, err := u.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &badStream{u.kind, err}
	}
	return n, err
}

// Where the first block header of an xz file has what we look for.
const (
	xzBlockFlags = 13
	xzFilters    = 14
	xzFlagSizes  = 0xc0
	xzLZMA2      = 0x21
)

// dictionary is the size of the dictionary that the first block of an xz file
// asks for, in bytes; 0 if it is not where it usually is.
func dictionary(head []byte) int64 {
	if len(head) < xzFilters+3 {
		return 0
	}
	at := xzFilters
	// Optional sizes of the block come first, as numbers of 7 bits per byte.
	for flags := head[xzBlockFlags] & xzFlagSizes; flags != 0; flags <<= 1 {
		if flags&0x80 == 0 {
			continue
		}
		for at < len(head) && head[at]&0x80 != 0 {
			at++
		}
		at++
	}
	if at+2 >= len(head) || head[at] != xzLZMA2 {
		return 0
	}
	bits := int64(head[at+2] & 0x3f)
	return (2 | bits&1) << (bits/2 + 11)
}
