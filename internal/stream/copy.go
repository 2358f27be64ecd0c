package stream

import (
	"errors"
	"io"
)

// Duplex is a byte stream whose write side can be closed alone, such as a TCP
// connection or a Conn.
type Duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Copy moves bytes both ways until both sides have ended or either breaks, then
// closes both. It returns the first real error; an orderly end is nil.
func Copy(a, b Duplex) error {
	ends := make(chan error, 2)
	go func() { ends <- oneWay(a, b) }()
	go func() { ends <- oneWay(b, a) }()

	first := <-ends
	if first != nil {
		closeBoth(a, b)
	}
	second := <-ends
	closeBoth(a, b)
	return errors.Join(first, secondary(first, second))
}

// secondary drops the error that closing after a first failure provokes.
func secondary(first, second error) error {
	if first != nil {
		return nil
	}
	return second
}

func oneWay(to, from Duplex) error {
	if _, err := io.Copy(to, from); err != nil {
		return err
	}
	return to.CloseWrite()
}

func closeBoth(a, b io.Closer) {
	_ = a.Close()
	_ = b.Close()
}
