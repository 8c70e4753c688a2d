package lease

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/taskgroup"
)

// Asker is how a node reaches the others.
type Asker interface {
	Self() NodeID
	// Live returns the nodes that are known to be up, without this one. It does not block.
	Live() []NodeID
	// Lively reports whether a node is connected and was heard a moment ago: a busy machine
	// answers late, and gets more time than one of which nothing is known. It does not block.
	Lively(node NodeID) bool
	// Ask sends a request to a node, which may be this one, and returns its answer. Addr is
	// where to find a node that is not connected, "" if that is known.
	Ask(ctx context.Context, node NodeID, addr string, r Request) (Answer, error)
}

const (
	// lateTime is how long a question goes on when its answer is no longer awaited.
	lateTime = 4 * time.Second
	// answeredFor is how long a node that answered counts as one that does, silentFor how
	// long one that never did is not asked again.
	answeredFor = 10 * time.Minute
	silentFor   = time.Minute
	// maxKnown bounds the nodes of either kind.
	maxKnown = 512
	// maxQuestions are under way at a time.
	maxQuestions = 256
)

// Client agrees with the site about the NARs that one node wants. It is safe for concurrent
// use. Close waits for everything that it sent.
type Client struct {
	asker    Asker
	now      func() time.Time
	group    taskgroup.Group
	slots    chan struct{}
	answered *backoff.Set[NodeID]
	silent   *backoff.Set[NodeID]
}

// NewClient returns the Client of a node. It starts nothing. Now is the clock for the time that
// an answer takes: one that this machine is too busy to read did not come late.
func NewClient(asker Asker, now func() time.Time) *Client {
	return &Client{
		asker: asker, now: now, slots: make(chan struct{}, maxQuestions),
		answered: backoff.NewSet[NodeID](maxKnown), silent: backoff.NewSet[NodeID](maxKnown),
	}
}

// patientWith reports whether a node gets more than AnswerTime for an answer.
func (c *Client) patientWith(node NodeID) bool { return c.answered.Has(node) || c.asker.Lively(node) }

// Close waits until the last reports are sent. Leases that begin later fetch without asking.
func (c *Client) Close() { c.group.Close() }

// live returns the nodes that may be asked.
func (c *Client) live() []NodeID {
	all := c.asker.Live()
	if c.silent.Len() == 0 {
		return all
	}
	list := make([]NodeID, 0, len(all))
	for _, n := range all {
		if !c.silent.Has(n) {
			list = append(list, n)
		}
	}
	return list
}

// ask sends a question and waits for the answer until a time. The question itself goes on for
// a while: an answer that comes late still shows that the node answers.
func (c *Client) ask(ctx context.Context, node NodeID, addr string, r Request, until time.Time) (Answer, error) {
	if c.silent.Has(node) { // another node redirected to it
		return Answer{}, errSilent
	}
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	defer runclock.AfterFunc(c.now, until, cancel)()
	select {
	case c.slots <- struct{}{}:
	case <-wait.Done():
		return Answer{}, wait.Err()
	}
	replies := make(chan reply, 1)
	own, stop := context.WithTimeout(context.WithoutCancel(ctx), lateTime)
	if !c.group.Go(func() {
		defer func() { <-c.slots }()
		defer stop()
		a, err := c.send(own, node, addr, r)
		replies <- reply{a, err}
	}) {
		<-c.slots
		stop()
		return Answer{}, context.Canceled
	}
	select {
	case r := <-replies:
		return r.answer, r.err
	case <-wait.Done():
	}
	switch {
	case ctx.Err() != nil:
		stop() // nobody wants it any more
	case c.answered.Has(node):
		c.answered.Remove(node)
	default:
		c.silent.Add(node, silentFor)
	}
	return Answer{}, wait.Err()
}

// send sends a request and remembers that the node answered.
func (c *Client) send(ctx context.Context, node NodeID, addr string, r Request) (Answer, error) {
	a, err := c.asker.Ask(ctx, node, addr, r)
	if err == nil && node != c.asker.Self() {
		c.answered.Add(node, answeredFor)
		c.silent.Remove(node)
	}
	return a, err
}

// errSilent is the error of a node that never answered so far.
var errSilent = errors.New("lease: node does not answer")

type reply struct {
	answer Answer
	err    error
}

// Lease is one NAR that this node wants and that others may want at the same time. Next and
// End are called by one goroutine, the rest by any.
type Lease struct {
	client *Client
	saying chan struct{} // one report at a time: the last one must arrive last

	mu      sync.Mutex
	session *Session
	from    NodeID // gives now; "" upstream
	form    nix.Form
	bytes   int64
	got     int64
	turn    *turn       // that goes on; nil before the first
	timer   *time.Timer // of the next report; nil before the first turn
	ended   bool
}

// turn is the time in which the same nodes give bytes.
type turn struct {
	fetch   bool
	anyway  bool // the node fetches although it was told to follow
	yielded bool
	over    chan struct{}
}

// Outcome is how a turn ended. The zero value is that of the first Next, and of one after a
// Decision was over; after a Fetch that was not over it says that upstream failed.
type Outcome struct {
	Failed  []NodeID // could not be reached, did not have it, or broke off
	Stalled NodeID   // gave too little for StallTime
}

// Decision says from where a node takes the next bytes.
type Decision struct {
	// Sources to follow, the best first, in a form and size that the node wants. If there are
	// none, it fetches from upstream.
	Sources []Source
	// By is the node that named them.
	By NodeID
	// Over is closed when the site wants another node to fetch instead: call Next again.
	Over <-chan struct{}
	// Yielded says that this follows on a Decision to fetch that was over.
	Yielded bool
}

// Fetch reports whether the node is to fetch from upstream.
func (d Decision) Fetch() bool { return len(d.Sources) == 0 }

// Begin returns the Lease for a NAR. It asks nobody yet. The caller calls End.
func (c *Client) Begin(want Want) *Lease {
	return &Lease{
		client: c, saying: make(chan struct{}, 1), form: want.Forms[0].Form,
		session: NewSession(c.asker.Self(), want, c.live(), c.patientWith, c.now()),
	}
}

// Next ends the turn before, if there was one, and decides from where the next bytes come. It
// takes at most a second; if nobody helps, the node fetches. It fails only when ctx ends.
func (l *Lease) Next(ctx context.Context, o Outcome) (Decision, error) {
	before := l.endTurn(o)
	if before != nil {
		if before.fetch && !before.yielded {
			// Others that ask now, and this node too, must not wait for it.
			l.tell(ctx, Release)
		}
		if !before.yielded && !before.anyway {
			l.again(o)
		}
	}
	for ctx.Err() == nil {
		step := l.step()
		if step.Kind != AskStep {
			return l.begin(ctx, step, before != nil && before.yielded), nil
		}
		a, err := l.client.ask(ctx, step.Node, step.Addr, step.Request, step.Until)
		l.reply(step.Node, a, err)
	}
	return Decision{}, ctx.Err()
}

func (l *Lease) endTurn(o Outcome) *turn {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.turn
	l.turn = nil
	if t != nil {
		l.received()
		for _, node := range o.Failed {
			l.session.Failed(node)
		}
	}
	return t
}

func (l *Lease) again(o Outcome) {
	live := l.client.live()
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.Stalled != "" {
		l.session.Stalled(o.Stalled, live, l.client.now())
	} else {
		l.session.Again(live, l.client.now())
	}
}

func (l *Lease) step() Step {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.session.Next(l.client.now())
}

func (l *Lease) reply(node NodeID, a Answer, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.session.Unanswered(node, l.client.now())
	} else {
		l.session.Answered(node, a, l.client.now())
	}
}

func (l *Lease) begin(ctx context.Context, s Step, yielded bool) Decision {
	own := context.WithoutCancel(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer == nil && !l.ended {
		l.timer = time.AfterFunc(ReportEvery, func() { l.report(own) })
	}
	l.turn = &turn{fetch: s.Kind == FetchStep, over: make(chan struct{})}
	l.from = ""
	if !l.turn.fetch {
		l.from = s.Sources[0].Node
	}
	first := ReportEvery
	if l.turn.fetch && l.session.form.Size >= smallNAR {
		first = 0 // the second in rank has to know before this node dies
	}
	l.reportIn(first)
	return Decision{Sources: s.Sources, By: l.session.told, Over: l.turn.over, Yielded: yielded}
}

// From says which node gives now ("" for upstream), and in which form.
func (l *Lease) From(node NodeID, form nix.Form) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from, l.form = node, form
}

// Progress says how many bytes others can read from here by now, and how many have come.
func (l *Lease) Progress(readable, received int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes, l.got = readable, received
}

// FetchAnyway says that this node fetches from upstream now, because its time budget is used
// up. It is not told to follow again, unless that fails: the next Next is Fetch at once, and the
// one after that says that upstream failed.
func (l *Lease) FetchAnyway() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.turn != nil {
		l.turn.anyway = !l.turn.fetch
	}
	l.from = ""
	l.received()
	l.session.FetchAnyway()
	l.reportIn(0)
}

// End says that the NAR is here, whole and verified, or that this node gives it up. The others
// are told in the background.
func (l *Lease) End(ctx context.Context, whole bool) {
	verb := Release
	l.mu.Lock()
	if whole {
		verb = Progress
		l.bytes, l.got = l.session.form.Size, l.session.form.Size
	}
	begun := l.timer != nil
	if begun {
		l.timer.Stop()
	}
	l.turn, l.ended = nil, true
	l.mu.Unlock()
	if begun {
		ctx = context.WithoutCancel(ctx)
		l.client.group.Go(func() { l.tell(ctx, verb) })
	}
}

// received is for holders of mu.
func (l *Lease) received() { l.session.Received(l.from, l.form, l.bytes, l.got) }

// reportIn sets the time of the next report. It is for holders of mu.
func (l *Lease) reportIn(d time.Duration) {
	switch {
	case l.ended || l.timer == nil: // before the first turn there is nothing to report
	default:
		l.timer.Reset(d)
	}
}

// report sends a report, and another one later.
func (l *Lease) report(ctx context.Context) {
	done, ok := l.client.group.Enter()
	if !ok {
		return
	}
	defer done()
	l.tell(ctx, Progress)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reportIn(ReportEvery)
}

// tell sends one report to all that should know, and hears what they reply.
func (l *Lease) tell(ctx context.Context, verb Verb) {
	select {
	case l.saying <- struct{}{}:
		defer func() { <-l.saying }()
	case <-ctx.Done():
		return
	}
	live := l.client.live()
	l.mu.Lock()
	l.received()
	r, to := l.session.Report(verb, live)
	if verb == Progress && l.turn == nil && !(l.ended && r.Bytes == r.Size) {
		to = nil // between turns questions say it; and after End nothing follows
	}
	l.mu.Unlock()
	for _, node := range to {
		actx, cancel := context.WithTimeout(ctx, AnswerTime)
		a, err := l.client.send(actx, node, "", r)
		cancel()
		if err == nil {
			l.heard(node, a)
		}
	}
}

// heard takes the answer to a report: another node may fetch the same and is to be followed.
func (l *Lease) heard(node NodeID, a Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.turn
	if t == nil || !t.fetch || t.yielded {
		return
	}
	now := l.client.now()
	if l.session.Answered(node, a, now); l.session.Next(now).Kind == FollowStep {
		t.yielded = true
		close(t.over)
	}
}
