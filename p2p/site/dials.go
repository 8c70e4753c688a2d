package site

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/taskgroup"
	"github.com/nixp2p/nixp2p/p2p/machine"
)

// dials are the connections that are being made because they are needed now. All callers that
// want the same one wait for one dial, which goes on when they have given up: the next caller
// needs it.
type dials struct {
	failed *backoff.Set[peer.ID]    // could not be reached lately
	rate   machine.Rate[machine.ID] // by the machine of the peer that named the node
	tasks  *taskgroup.Group

	mu      sync.Mutex
	running map[peer.ID]*dial
}

type dial struct {
	began time.Time
	done  chan struct{}
	err   error // valid when done
}

const (
	// failedFor is how long a node that could not be reached counts as unreachable.
	failedFor = time.Minute
	maxFailed = 1024
	// maxDials are made at a time. A machine whose peers name nodes has namedBurst of them
	// dialled at once, and then one each namedEvery; what can be reached does not count.
	maxDials   = 64
	namedBurst = 16
	namedEvery = time.Second
	// dialPatience is how long it is worth to wait for a node that another one is connected to:
	// a handshake takes milliseconds, but not where all machines start at once.
	dialPatience = time.Second
)

var errManyDials = errors.New("too many nodes are being dialled")

func newDials(tasks *taskgroup.Group) *dials {
	return &dials{
		failed: backoff.NewSet[peer.ID](maxFailed), tasks: tasks, running: make(map[peer.ID]*dial),
		rate: machine.Rate[machine.ID]{Every: namedEvery, Burst: namedBurst},
	}
}

// inProgress reports whether a node is being dialled, and not for long yet.
func (d *dials) inProgress(id peer.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	u := d.running[id]
	return u != nil && time.Since(u.began) < dialPatience
}

// start begins to dial a node that a peer on machine by named, unless that goes on already.
func (d *dials) start(ctx context.Context, h host.Host, to peer.AddrInfo, by machine.ID) (*dial, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if u := d.running[to.ID]; u != nil {
		return u, nil
	}
	if len(d.running) >= maxDials || !d.rate.Allow(by) {
		return nil, errManyDials
	}
	u := &dial{began: time.Now(), done: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dialTime+identifyTime)
	ok := d.tasks.Go(func() {
		defer cancel()
		d.end(to.ID, u, by, connect(ctx, h, to))
	})
	if !ok {
		cancel()
		return nil, errNotRunning
	}
	d.running[to.ID] = u
	return u, nil
}

func (d *dials) end(id peer.ID, u *dial, by machine.ID, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.running, id)
	if u.err = err; err != nil {
		d.failed.Add(id, failedFor)
	} else {
		d.failed.Remove(id)
		d.rate.Return(by)
	}
	close(u.done)
}

// wait waits for a dial as long as ctx allows.
func (u *dial) wait(ctx context.Context) error {
	select {
	case <-u.done:
		return u.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connect dials a node and waits until it has identified itself.
func connect(ctx context.Context, h host.Host, to peer.AddrInfo) error {
	if s, ok := h.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(to.ID) // the book and dials have their own
	}
	return h.Connect(network.WithDialPeerTimeout(ctx, dialTime), to)
}
