package stream

import "io"

// Duplex is a byte stream whose write side can be closed alone, such as a TCP
// connection or a Conn.
type Duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// departing is a Duplex that can tell a peer that has only stopped sending from one
// that is gone altogether.
type departing interface {
	Departed() <-chan struct{}
}

// end is how one direction ended.
type end struct {
	from Duplex
	err  error
}

// Copy moves bytes both ways until both sides have ended, either breaks, or a peer
// is gone that nothing can be delivered to any more; then it closes both. It returns
// the first real error; an orderly end is nil.
func Copy(a, b Duplex) error {
	ends := make(chan end, 2)
	go func() { ends <- end{b, oneWay(a, b)} }()
	go func() { ends <- end{a, oneWay(b, a)} }()

	first := <-ends
	if first.err != nil {
		closeBoth(a, b)
		<-ends // it fails because of the closing
		return first.err
	}
	select {
	case second := <-ends:
		closeBoth(a, b)
		return second.err
	case <-departed(first.from):
		closeBoth(a, b)
		<-ends
		return nil
	}
}

// departed returns nil, which is never ready, for streams that cannot tell.
func departed(d Duplex) <-chan struct{} {
	if d, ok := d.(departing); ok {
		return d.Departed()
	}
	return nil
}

func oneWay(to, from Duplex) error {
	if _, err := io.Copy(to, from); err != nil {
		return err
	}
	return to.CloseWrite()
}

// closeBoth breaks the directions that still run.
func closeBoth(a, b io.Closer) {
	_ = a.Close()
	_ = b.Close()
}
