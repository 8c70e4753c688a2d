// Package leasing carries out for one node what package lease decides: it asks coordinators,
// tells them how far this node is, and tells a download who gives the next bytes. It sends
// and receives through a Site, and moves no bytes itself.
package leasing

import (
	"context"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/p2p/lease"
)

// Site is how a node reaches the others.
type Site interface {
	Self() lease.NodeID
	// Live returns the nodes that are known to be up, without this one.
	Live() []lease.NodeID
	// Ask sends a request to a node, which may be this one, and returns its answer. Addr is
	// where to find a node that is not connected, "" when that is known.
	Ask(ctx context.Context, node lease.NodeID, addr string, r lease.Request) (lease.Answer, error)
	// Lively tells whether what comes from a node, if only a ping, shows that it works.
	Lively(node lease.NodeID) bool
}

const (
	// A coordinator that does not answer in lease.AnswerTime is waited for as long as other
	// bytes come from it, up to lateTime: it has much to do, as all have when they start at
	// the same time, and to go upstream without it is what would cost most then.
	lateTime = 4 * time.Second
	lateTick = lease.AnswerTime / 5
)

// Leases are those of one node. It is safe for concurrent use. Close waits for what it sent.
type Leases struct {
	site Site

	mu     sync.Mutex
	closed bool
	out    sync.WaitGroup
}

// New returns the Leases of a node. It starts nothing.
func New(site Site) *Leases { return &Leases{site: site} }

// Close waits until the last words are said. Leases that begin later go upstream unasked.
func (ls *Leases) Close() {
	ls.mu.Lock()
	ls.closed = true
	ls.mu.Unlock()
	ls.out.Wait()
}

// start runs f in a goroutine that Close waits for, unless it is too late.
func (ls *Leases) start(f func()) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.closed {
		return false
	}
	ls.out.Go(f)
	return true
}

// Lease is one NAR that this node wants and that others may want at the same time. Next and
// End are called by one goroutine, the rest by any.
type Lease struct {
	all    *Leases
	stop   context.CancelFunc // of the reporter
	urgent chan struct{}      // something is to be reported now
	saying chan struct{}      // one report at a time: the last one must be heard last

	mu      sync.Mutex
	session *lease.Session
	want    lease.Want
	giver   lease.NodeID // "" upstream
	turn    *turn        // that goes on; nil before the first
	yielded bool         // turn was ended by a coordinator
}

// turn is the time in which the same give bytes.
type turn struct {
	upstream bool
	end      context.CancelFunc
}

// Outcome is how a turn ended, for Next.
type Outcome struct {
	Failed  []lease.NodeID // could not be reached, had it not, or broke off
	Stalled lease.NodeID   // gave nothing for lease.StallTime
}

// Begin returns the Lease for a NAR. It asks nobody yet. The caller calls End.
func (ls *Leases) Begin(ctx context.Context, want lease.Want) *Lease {
	l := &Lease{
		all: ls, want: want, urgent: make(chan struct{}, 1), saying: make(chan struct{}, 1),
		session: lease.NewSession(ls.site.Self(), want, ls.site.Live(), time.Now()),
	}
	own, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	if want.Alone || !ls.start(func() { l.report(own) }) {
		stop()
	}
	return l
}

// Next ends the turn before, if there was one, and says from whom to take the next bytes, the
// best first; none: from upstream. The turn's context ends with ctx, and when the site wants
// this node to leave fetching to another one. Next takes as long as coordinators are waited
// for, 250 ms each, and never fails: when nobody helps, or ctx ends, the turn is upstream's.
func (l *Lease) Next(ctx context.Context, o Outcome) (context.Context, []lease.Source) {
	l.end(ctx, o)
	l.mu.Lock()
	defer l.mu.Unlock()
	for ctx.Err() == nil {
		step := l.session.Next(time.Now())
		if step.Kind != lease.DoAsk {
			return l.begin(ctx, step.Sources)
		}
		l.mu.Unlock()
		a, err := l.all.ask(ctx, step.Node, step.Addr, step.Request)
		l.mu.Lock()
		if err != nil {
			l.session.Unanswered(step.Node, time.Now())
		} else {
			l.session.Answered(step.Node, a, time.Now())
		}
	}
	return l.begin(ctx, nil)
}

// ask asks a node, and gives up when that is no use any more.
func (ls *Leases) ask(ctx context.Context, node lease.NodeID, addr string, r lease.Request) (lease.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, lateTime)
	defer cancel()
	var late *time.Timer
	armed := make(chan struct{})
	late = time.AfterFunc(lease.AnswerTime, func() {
		<-armed
		if ls.site.Lively(node) {
			late.Reset(lateTick)
		} else {
			cancel()
		}
	})
	close(armed)
	defer late.Stop()
	return ls.site.Ask(ctx, node, addr, r)
}

// begin is for holders of mu.
func (l *Lease) begin(ctx context.Context, sources []lease.Source) (context.Context, []lease.Source) {
	ctx, cancel := context.WithCancel(ctx)
	l.turn, l.yielded, l.giver = &turn{len(sources) == 0, cancel}, false, ""
	if len(sources) > 0 {
		l.giver = sources[0].Node
	} else if l.want.Size >= urgentSize {
		// The second in rank has to know before the first one dies.
		select {
		case l.urgent <- struct{}{}:
		default:
		}
	}
	return ctx, sources
}

// urgentSize: what is smaller is there before a report of its beginning is of use.
const urgentSize = 1 << 20

// end closes the turn that goes on.
func (l *Lease) end(ctx context.Context, o Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.turn
	if t == nil {
		return
	}
	t.end()
	l.turn = nil
	now := time.Now()
	l.moved(now)
	for _, node := range o.Failed {
		l.session.Failed(node, now)
	}
	live := l.all.site.Live()
	switch {
	case l.yielded:
	case t.upstream:
		// Upstream failed: who asks now, this node included, must not wait for it.
		l.mu.Unlock()
		l.tell(ctx, lease.Release)
		l.mu.Lock()
		l.session.Again(live, time.Now())
	case o.Stalled != "":
		l.session.Stalled(o.Stalled, live, now)
	default:
		l.session.Again(live, now)
	}
}

// Yields tells whether a coordinator ended the turn before.
func (l *Lease) Yields() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.yielded
}

// From says which of the turn's sources gives.
func (l *Lease) From(node lease.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.giver = node
}

// Moved says how many bytes others can have from here by now, and how many have come.
func (l *Lease) Moved(bytes, got int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.want.Bytes, l.want.Got = bytes, got
}

// moved is for holders of mu.
func (l *Lease) moved(now time.Time) {
	w := l.want
	l.session.Moved(l.giver, w.Form, w.Size, w.Bytes, w.Got, now)
}

// report tells coordinators how far this node is, until ctx ends.
func (l *Lease) report(ctx context.Context) {
	tick := time.NewTicker(lease.ReportEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-l.urgent:
		}
		l.tell(ctx, lease.Progress)
	}
}

// tell sends one report to all who should know, and hears what they say to it.
func (l *Lease) tell(ctx context.Context, verb lease.Verb) {
	select {
	case l.saying <- struct{}{}:
		defer func() { <-l.saying }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	now := time.Now()
	l.moved(now)
	r, to := l.session.Report(verb, l.all.site.Live(), now)
	if verb == lease.Progress && r.Size < urgentSize {
		// It is there before a second one could pass it on: who fetches it is enough to know.
		if to = to[:min(len(to), 1)]; r.From != "" {
			to = nil
		}
	}
	l.mu.Unlock()
	for _, node := range to {
		a, err := l.all.ask(ctx, node, "", r)
		if err == nil && verb == lease.Progress {
			l.heard(node, a)
		}
	}
}

// heard takes the answer to a report. It may be that another node fetches the same and is to
// be followed.
func (l *Lease) heard(node lease.NodeID, a lease.Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.turn
	if t == nil || !t.upstream {
		return
	}
	now := time.Now()
	l.session.Answered(node, a, now)
	if l.session.Next(now).Kind == lease.DoFollow {
		l.yielded = true
		t.end()
	}
}

// End says that the NAR is here, whole and proven, or that this node gives it up. The words
// to the others are said in the background.
func (l *Lease) End(ctx context.Context, whole bool) {
	l.stop()
	l.mu.Lock()
	if l.turn != nil {
		l.turn.end()
		l.turn = nil
	}
	verb := lease.Release
	if whole {
		verb = lease.Progress
		l.want.Bytes, l.want.Got = l.want.Size, l.want.Size
	}
	l.mu.Unlock()
	ctx = context.WithoutCancel(ctx)
	l.all.start(func() { l.tell(ctx, verb) })
}
