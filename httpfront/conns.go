package httpfront

import (
	"cmp"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/p2p/machine"
)

// MaxConns is the number of connections that a node keeps for clients: each Nix process opens
// up to 25, and one takes up to 30 kB of memory.
const MaxConns = 4 << 10

// youngFor is how long a new connection is not closed to make room for others: its request is
// probably on its way. For that there may be half as many more than the bound.
const youngFor = 5 * time.Second

// Conns bounds the connections of a server. When there are too many, those that are of least use
// are closed to make room: a client that holds thousands of idle connections must not keep
// others out. The server's ConnState must be its State.
type Conns struct {
	max  int
	mu   sync.Mutex
	all  map[*conn]struct{}
	base time.Time
}

// NewConns returns a bound of max connections, at least 2.
func NewConns(max int) *Conns {
	return &Conns{max: max, all: map[*conn]struct{}{}, base: time.Now()}
}

// Listener returns l with its connections bounded, together with those of all other listeners of
// c.
func (c *Conns) Listener(l net.Listener) net.Listener { return &boundListener{l, c} }

// State is for http.Server.ConnState.
func (c *Conns) State(nc net.Conn, s http.ConnState) {
	if x, ok := nc.(*conn); ok {
		x.since.Store(int64(time.Since(c.base)))
		x.state.Store(int32(s))
	}
}

// conn is a connection of a client.
type conn struct {
	net.Conn
	owner *Conns
	from  machine.ID   // zero for a socket of the file system
	state atomic.Int32 // http.ConnState
	since atomic.Int64 // last use: change of state, or bytes that the client took
}

// Write counts as use if it is more than a short answer: those end with a change of state.
func (x *conn) Write(b []byte) (int, error) {
	n, err := x.Conn.Write(b)
	if n > counted {
		x.since.Store(int64(time.Since(x.owner.base)))
	}
	return n, err
}

func (x *conn) Close() error {
	x.owner.mu.Lock()
	delete(x.owner.all, x)
	x.owner.mu.Unlock()
	return x.Conn.Close()
}

type boundListener struct {
	net.Listener
	owner *Conns
}

// Accept closes connections before it takes one too many, and also when the process has no file
// descriptor left.
func (l *boundListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		l.owner.makeRoom(0)
		nc, err = l.Listener.Accept()
	}
	if err != nil {
		return nil, err
	}
	l.owner.makeRoom(l.owner.max)
	x := &conn{Conn: nc, owner: l.owner}
	if at, err := netip.ParseAddrPort(nc.RemoteAddr().String()); err == nil {
		x.from = machine.Of(at.Addr())
	}
	x.since.Store(int64(time.Since(l.owner.base)))
	l.owner.mu.Lock()
	l.owner.all[x] = struct{}{}
	l.owner.mu.Unlock()
	return x, nil
}

// makeRoom closes connections if there are limit or more.
func (c *Conns) makeRoom(limit int) {
	c.mu.Lock()
	var victims []*conn
	if len(c.all) >= limit {
		victims = c.leastUseful()
	}
	c.mu.Unlock()
	for _, x := range victims {
		_ = x.Close()
	}
}

// leastUseful returns connections to close, so many that the next ones find room, of the machine that
// holds the most: idle ones, the longest unused first; else those that have not sent a whole
// request; else the one that took no byte for longest. It is about half of a kind at most: the
// newest may be a client that is about to ask. The caller holds mu.
func (c *Conns) leastUseful() []*conn {
	held, most := map[machine.ID]int{}, machine.ID{}
	for x := range c.all {
		if held[x.from]++; held[x.from] > held[most] {
			most = x.from
		}
	}
	kinds := map[http.ConnState][]*conn{}
	for x := range c.all {
		if x.from != most {
			continue
		}
		s := http.ConnState(x.state.Load())
		kinds[s] = append(kinds[s], x)
	}
	for _, s := range []http.ConnState{http.StateIdle, http.StateNew, http.StateActive} {
		list := kinds[s]
		if s == http.StateNew && len(c.all) < c.max*3/2 {
			young := int64(time.Since(c.base) - youngFor)
			list = slices.DeleteFunc(list, func(x *conn) bool { return x.since.Load() > young })
		}
		if len(list) == 0 {
			continue
		}
		slices.SortFunc(list, func(a, b *conn) int { return cmp.Compare(a.since.Load(), b.since.Load()) })
		if s == http.StateActive {
			if len(c.all) < c.max*3/2 {
				return nil
			}
			return list[:1]
		}
		return list[:min(len(list)/2+1, c.max/64+1)]
	}
	return nil
}
