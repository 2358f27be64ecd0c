package box

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

const (
	// logLimit is the size in bytes at which a log file is put aside.
	logLimit = 16 << 20
	// logKept is how many files put aside are kept.
	logKept = 2
)

// logFile is a component's output: appended to, put aside when it has grown, so that
// a box that runs for months keeps a bounded amount. It is safe for concurrent use.
type logFile struct {
	path  string
	limit int64

	mu   sync.Mutex
	file *os.File
	size int64
}

// openLog opens or creates the file for appending.
func openLog(path string, limit int64) (*logFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("create log directory: %w", err)
	}
	l := &logFile{path: path, limit: limit}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *logFile) open() error {
	file, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("open log: %w", err), file.Close())
	}
	l.file, l.size = file, info.Size()
	return nil
}

// Write appends one piece of output. It never reports an error: a full disk must not
// stop the component that writes, which would wait on its pipe forever.
func (l *logFile) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(text)) > l.limit {
		l.rotate()
	}
	n, _ := l.file.Write(text)
	l.size += int64(n)
	return len(text), nil
}

// rotate puts the file aside. If that fails, the old file is used on.
func (l *logFile) rotate() {
	for i := logKept; i > 1; i-- {
		_ = os.Rename(fmt.Sprintf("%s.%d", l.path, i-1), fmt.Sprintf("%s.%d", l.path, i))
	}
	if err := os.Rename(l.path, l.path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return
	}
	old := l.file
	if err := l.open(); err == nil {
		_ = old.Close()
	}
}
