package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// Layer is a finished image layer in the cache: a zstd-compressed tar file and what
// a manifest says about it. It implements v1.Layer.
type Layer struct {
	Path string  `json:"-"`
	Sum  v1.Hash `json:"digest"` // of the compressed bytes
	Diff v1.Hash `json:"diffID"` // of the uncompressed bytes
	Len  int64   `json:"size"`   // compressed, in bytes
}

var _ v1.Layer = (*Layer)(nil)

// Digest implements v1.Layer.
func (l *Layer) Digest() (v1.Hash, error) { return l.Sum, nil }

// DiffID implements v1.Layer.
func (l *Layer) DiffID() (v1.Hash, error) { return l.Diff, nil }

// Size implements v1.Layer.
func (l *Layer) Size() (int64, error) { return l.Len, nil }

// MediaType implements v1.Layer.
func (l *Layer) MediaType() (types.MediaType, error) { return types.OCILayerZStd, nil }

// Compressed implements v1.Layer.
func (l *Layer) Compressed() (io.ReadCloser, error) { return os.Open(l.Path) }

// Uncompressed implements v1.Layer.
func (l *Layer) Uncompressed() (io.ReadCloser, error) {
	file, err := os.Open(l.Path)
	if err != nil {
		return nil, err
	}
	decoder, err := zstd.NewReader(file)
	if err != nil {
		file.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{decoder, closers{decoder.IOReadCloser(), file}}, nil
}

type closers []io.Closer

func (c closers) Close() error {
	var first error
	for _, closer := range c {
		if err := closer.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// layer returns the layer of a key, written by fill if the cache lacks it.
func (c Cache) layer(key string, fill func(*layerWriter) error) (*Layer, error) {
	blob, err := c.file("layer-"+key+".tar.zst", func(name string) error {
		return writeLayer(name, fill)
	})
	if err != nil {
		return nil, err
	}
	// The description can always be computed again; it only saves reading the blob.
	description, err := c.file("layer-"+key+".json", func(name string) error {
		return describeLayer(blob, name)
	})
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(description)
	if err != nil {
		return nil, err
	}
	layer := &Layer{Path: blob}
	if err := json.Unmarshal(content, layer); err != nil {
		return nil, fmt.Errorf("read %s: %w", description, err)
	}
	return layer, nil
}

func describeLayer(blob, name string) error {
	layer := &Layer{Path: blob}
	compressed, err := layer.Compressed()
	if err != nil {
		return err
	}
	defer compressed.Close()
	if layer.Sum, layer.Len, err = v1.SHA256(compressed); err != nil {
		return err
	}
	uncompressed, err := layer.Uncompressed()
	if err != nil {
		return err
	}
	defer uncompressed.Close()
	if layer.Diff, _, err = v1.SHA256(uncompressed); err != nil {
		return err
	}
	content, err := json.Marshal(layer)
	if err != nil {
		return err
	}
	return os.WriteFile(name, content, 0o644)
}

func writeLayer(name string, fill func(*layerWriter) error) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	defer file.Close()
	// More than one goroutine would make the bytes depend on scheduling.
	encoder, err := zstd.NewWriter(file, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	w := &layerWriter{archive: tar.NewWriter(encoder), made: map[string]bool{"/": true}}
	if err := fill(w); err != nil {
		return err
	}
	if err := w.archive.Close(); err != nil {
		return err
	}
	if err := encoder.Close(); err != nil {
		return err
	}
	return file.Close()
}

// layerWriter writes files with everything that could differ between two builds
// removed: owner, times and order are ours. Parent directories appear by themselves.
type layerWriter struct {
	archive *tar.Writer
	made    map[string]bool // directories already written
}

func (w *layerWriter) write(header tar.Header, content io.Reader) error {
	if err := w.parents(path.Dir(header.Name)); err != nil {
		return err
	}
	clean := tar.Header{
		Typeflag: header.Typeflag,
		Name:     strings.TrimPrefix(header.Name, "/"),
		Linkname: header.Linkname,
		Size:     header.Size,
		Mode:     header.Mode,
		ModTime:  time.Unix(epoch, 0),
		Format:   tar.FormatPAX,
	}
	if clean.Typeflag == tar.TypeDir {
		w.made[path.Clean(header.Name)] = true
		clean.Name += "/"
	}
	if err := w.archive.WriteHeader(&clean); err != nil {
		return fmt.Errorf("archive %s: %w", header.Name, err)
	}
	if content == nil {
		return nil
	}
	if _, err := io.Copy(w.archive, content); err != nil {
		return fmt.Errorf("archive %s: %w", header.Name, err)
	}
	return nil
}

func (w *layerWriter) parents(dir string) error {
	if w.made[dir] {
		return nil
	}
	return w.directory(dir, 0o755)
}

func (w *layerWriter) directory(name string, mode int64) error {
	return w.write(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, nil)
}

func (w *layerWriter) text(name, content string) error {
	header := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}
	return w.write(header, strings.NewReader(content))
}

// program adds a file of the machine as an executable.
func (w *layerWriter) program(from, to string) error {
	file, err := os.Open(from)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	return w.write(tar.Header{Typeflag: tar.TypeReg, Name: to, Mode: 0o755, Size: info.Size()}, file)
}

// tree adds the named files of an archive. Links come first: "/bin" must be a link
// before anything is put below it by that name.
func (w *layerWriter) tree(files tree, names []string) error {
	sorted := append([]string(nil), names...)
	sort.SliceStable(sorted, func(i, j int) bool {
		return files[sorted[i]].header.Typeflag == tar.TypeSymlink && files[sorted[j]].header.Typeflag != tar.TypeSymlink
	})
	for _, name := range sorted {
		e := files[name]
		header := e.header
		header.Name = name
		// Nothing in an image is set-user-ID.
		header.Mode &= 0o1777
		if header.Typeflag == tar.TypeDir && w.made[name] {
			continue
		}
		var content io.Reader
		if e.content != nil {
			content = io.NewSectionReader(e.content, 0, e.content.Size())
		}
		if err := w.write(header, content); err != nil {
			return err
		}
	}
	return nil
}

// digestOf is a short digest of values that decide a result, for names in the cache.
func digestOf(inputs ...any) string {
	sum := sha256.New()
	for _, input := range inputs {
		fmt.Fprintf(sum, "%T %q\n", input, input)
	}
	return shortSum(sum)
}

// digestOfFile is digestOf the content of a file.
func digestOfFile(name string) (string, error) {
	file, err := os.Open(filepath.Clean(name))
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return shortSum(sum), nil
}

func shortSum(sum hash.Hash) string {
	var buffer bytes.Buffer
	buffer.Write(sum.Sum(nil))
	return hex.EncodeToString(buffer.Bytes()[:12])
}
