package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
)

// Request is one request as the launcher sees it. Whoever takes it from the
// channel must answer it once and owns its files.
type Request struct {
	Type  Type
	Body  json.RawMessage
	Files []*os.File

	id   uint64
	conn *Conn
}

// Decode reads the body into out.
func (r *Request) Decode(out any) error {
	if err := json.Unmarshal(r.Body, out); err != nil {
		return Errorf(CodeInvalid, "decode %s: %v", r.Type, err)
	}
	return nil
}

// Answer sends the result. A handler that has gone meanwhile does not need it, so
// nothing is returned.
func (r *Request) Answer(body any, err error) {
	m := Message{Type: TypeAnswer, ID: r.id}
	if err != nil {
		m.Error = toError(err)
	} else if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			m.Error = toError(err)
		}
		m.Body = data
	}
	if r.conn != nil && r.conn.Send(m, nil) != nil {
		_ = r.conn.Close()
	}
}

func toError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Code: e.Code, Message: err.Error()}
	}
	return &Error{Code: CodeInternal, Message: err.Error()}
}

// Server is the launcher's end: it accepts one handler at a time, turns packets
// into requests and sends states. A new connection replaces the old one.
type Server struct {
	listener *Listener
	allow    func(Peer) error
	requests chan *Request

	mu      sync.Mutex
	current *Conn
	wg      sync.WaitGroup
}

// NewServer begins to accept. Peers that allow refuses are disconnected at once.
func NewServer(l *Listener, allow func(Peer) error) *Server {
	s := &Server{listener: l, allow: allow, requests: make(chan *Request)}
	s.wg.Add(1)
	go s.accept()
	return s
}

// Requests yields the requests of all handlers, in order. It is closed by Close.
func (s *Server) Requests() <-chan *Request { return s.requests }

// Publish sends a state to the connected handler, if there is one. A handler that
// does not read is disconnected.
func (s *Server) Publish(state State) error {
	data, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	s.mu.Lock()
	c := s.current
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	if err := c.Send(Message{Type: TypeState, Body: data}, nil); err != nil {
		_ = c.Close()
	}
	return nil
}

// Close stops listening and ends the connection. The caller must go on receiving
// requests until the channel is closed.
func (s *Server) Close() error {
	err := s.listener.Close()
	s.replace(nil)
	s.wg.Wait()
	close(s.requests)
	return err
}

// replace makes c the connection and closes the one before.
func (s *Server) replace(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		_ = s.current.Close()
	}
	s.current = c
}

func (s *Server) accept() {
	defer s.wg.Done()
	for {
		c, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the peer left between connect and accept
		}
		peer, err := c.Peer()
		if err == nil {
			err = s.allow(peer)
		}
		if err != nil {
			_ = c.Close()
			continue
		}
		s.replace(c)
		s.wg.Add(1)
		go s.serve(c)
	}
}

func (s *Server) serve(c *Conn) {
	defer s.wg.Done()
	defer func() { _ = c.Close() }()
	for {
		m, files, err := c.Receive()
		if err != nil {
			return
		}
		if !takesFiles(m.Type) {
			CloseFiles(files)
			files = nil
		}
		s.requests <- &Request{Type: m.Type, Body: m.Body, Files: files, id: m.ID, conn: c}
	}
}
