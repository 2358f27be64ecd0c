// Package qmptest is a QMP server for tests: it greets, answers commands from a table
// of functions and emits events. It speaks over a real socket pair, so that a client
// under test meets real partial reads and hang-ups. It knows nothing of QEMU's rules
// beyond the framing; tests of real behaviour are in test/qemu.
package qmptest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Handler answers one command.
type Handler func(arguments json.RawMessage) (any, error)

// Server is one end of a connection.
type Server struct {
	conn net.Conn
	done chan struct{}

	mu       sync.Mutex
	handlers map[string]Handler
	commands []string
}

// New starts a server and returns it with the client's end. Both are closed with the
// test.
func New(t *testing.T) (*Server, net.Conn) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	server, client := fileConn(t, pair[0]), fileConn(t, pair[1])
	s := Serve(server, func(*Server) {})
	t.Cleanup(func() {
		_ = client.Close()
		s.Close()
	})
	return s, client
}

func fileConn(t *testing.T, fd int) net.Conn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "qmp")
	defer func() { _ = f.Close() }()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Serve serves one connection, for a fake QEMU process that got it as a descriptor.
// The handlers that setup adds are there before the client can ask.
func Serve(conn net.Conn, setup func(*Server)) *Server {
	s := &Server{conn: conn, done: make(chan struct{}), handlers: map[string]Handler{}}
	s.Handle("qmp_capabilities", func(json.RawMessage) (any, error) { return nil, nil })
	setup(s)
	s.write(map[string]any{"QMP": map[string]any{
		"version":      map[string]any{"qemu": map[string]int{"major": 10, "minor": 0, "micro": 2}, "package": ""},
		"capabilities": []string{},
	}})
	go s.serve()
	return s
}

// Handle sets the answer to a command.
func (s *Server) Handle(command string, h Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[command] = h
}

// Emit sends an event.
func (s *Server) Emit(name string, data any) {
	e := map[string]any{"event": name, "timestamp": map[string]int64{"seconds": 1, "microseconds": 2}}
	if data != nil {
		e["data"] = data
	}
	s.write(e)
}

// Raw sends bytes as they are.
func (s *Server) Raw(data []byte) { _, _ = s.conn.Write(data) }

// Commands is what clients have asked for so far.
func (s *Server) Commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.commands...)
}

// Close hangs up and waits.
func (s *Server) Close() {
	_ = s.conn.Close()
	<-s.done
}

// Done is closed when the connection has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

func (s *Server) write(v any) {
	data, err := json.Marshal(v)
	if err != nil {
		data = fmt.Appendf(nil, "%v", err)
	}
	_, _ = s.conn.Write(append(data, '\r', '\n'))
}

func (s *Server) serve() {
	defer close(s.done)
	lines := bufio.NewScanner(s.conn)
	for lines.Scan() {
		var c struct {
			Execute   string          `json:"execute"`
			Arguments json.RawMessage `json:"arguments"`
			ID        json.RawMessage `json:"id"`
		}
		if json.Unmarshal(lines.Bytes(), &c) != nil {
			return
		}
		s.mu.Lock()
		h := s.handlers[c.Execute]
		s.commands = append(s.commands, c.Execute)
		s.mu.Unlock()
		s.write(s.answer(h, c.Execute, c.Arguments, c.ID))
	}
}

func (s *Server) answer(h Handler, command string, arguments, id json.RawMessage) map[string]any {
	refuse := func(class, text string) map[string]any {
		return map[string]any{"id": id, "error": map[string]string{"class": class, "desc": text}}
	}
	if h == nil {
		return refuse("CommandNotFound", "The command "+command+" has not been found")
	}
	result, err := h(arguments)
	if err != nil {
		return refuse("GenericError", err.Error())
	}
	if result == nil {
		result = map[string]any{}
	}
	return map[string]any{"id": id, "return": result}
}
