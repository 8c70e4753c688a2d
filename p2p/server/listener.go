package server

import (
	"net"
	"sync"

	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/site"
)

// Streams at a time: each takes a goroutine and some 20 kB. When there are more, one of the
// machine with the most ends, the one that was idle for longest.
const (
	maxStreams   = 1024
	maxStreamsBy = 512
)

// listener bounds the streams of another one by machine.
type listener struct {
	net.Listener
	site    Site
	streams *machine.Shares[*stream]
}

func newListener(l net.Listener, s Site) *listener {
	return &listener{l, s, machine.NewShares[*stream](machine.Limits{Total: maxStreams, Each: maxStreamsBy})}
}

// Accept is part of net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		id, err := site.PeerOf(c.RemoteAddr().String())
		p := l.site.Peer(id)
		if err != nil || p == nil {
			_ = c.Close()
			continue
		}
		st := &stream{Conn: c, of: l.streams}
		gone, ok := l.streams.Put(p.Machine, st, 1, false)
		for _, g := range gone {
			_ = g.Conn.Close()
		}
		if ok {
			return st, nil
		}
		_ = c.Close()
	}
}

// stream is a counted one.
type stream struct {
	net.Conn
	of   *machine.Shares[*stream]
	once sync.Once
}

// Write is part of net.Conn.
func (s *stream) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	if n > 0 {
		s.of.Use(s)
	}
	return n, err
}

// Close is part of net.Conn.
func (s *stream) Close() error {
	s.once.Do(func() { s.of.Remove(s) })
	return s.Conn.Close()
}
