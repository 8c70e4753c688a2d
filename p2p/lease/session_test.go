package lease

import (
	"slices"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/source"
)

const big = 100 << 20

// trip is a Session with a clock.
type trip struct {
	t *testing.T
	*Session
	now   time.Time
	order []NodeID // rank of all, without the session's own node
}

func newTrip(t *testing.T) *trip {
	x := &trip{t: t, now: time.Unix(1000, 0)}
	want := Want{Nar: narOf(7), Forms: []source.Sized{{Form: xzForm, Size: big}, {Size: 4 * big}}}
	self := NodeID("self")
	x.order = Rank(want.Nar, nodes(6))
	for !Outranks(want.Nar, x.order[4], self) {
		self += "."
	}
	x.Session = NewSession(self, want, nodes(6), nil, x.now)
	return x
}

func (x *trip) pass(d time.Duration) { x.now = x.now.Add(d) }

func (x *trip) asks(node NodeID) Request {
	x.t.Helper()
	s := x.Next(x.now)
	if s.Kind != AskStep || s.Node != node {
		x.t.Fatalf("%+v, want a question to %q", s, node)
	}
	return s.Request
}

func (x *trip) fetches(direct bool) {
	x.t.Helper()
	if s := x.Next(x.now); s.Kind != FetchStep || s.Direct != direct {
		x.t.Fatalf("%+v, want to fetch", s)
	}
}

func (x *trip) follows(nodes ...NodeID) {
	x.t.Helper()
	s := x.Next(x.now)
	var got []NodeID
	for _, o := range s.Sources {
		got = append(got, o.Node)
	}
	if s.Kind != FollowStep || !slices.Equal(got, nodes) {
		x.t.Fatalf("%+v, want to follow %q", s, nodes)
	}
}

func follow(nodes ...NodeID) Answer {
	a := Answer{Kind: Follow}
	for _, n := range nodes {
		a.Sources = append(a.Sources, Source{Node: n, Form: xzForm, Size: big, Bytes: 1000, Got: 1000})
	}
	return a
}

func TestNobodyAnswers(t *testing.T) {
	x := newTrip(t)
	r := x.asks(x.order[0])
	if r.Verb != Ask || r.Form != xzForm || r.Size != big || r.Hops != 0 || r.Tried != nil {
		t.Errorf("%+v", r)
	}
	x.pass(AnswerTime - 1)
	x.asks(x.order[0])
	x.pass(1)
	if r = x.asks(x.order[1]); !slices.Equal(r.Tried, x.order[:1]) {
		t.Errorf("%+v", r)
	}
	x.Answered(x.order[0], Answer{Kind: Fetch}, x.now) // too late
	x.asks(x.order[1])
	if _, to := x.Report(Progress, nodes(6)); to != nil {
		t.Errorf("reports while it asks to %q", to)
	}
	x.pass(AnswerTime)
	x.fetches(true)
	r, to := x.Report(Progress, nodes(6))
	if r.Verb != Progress || r.From != "" || !slices.Equal(to, x.order[:2]) {
		t.Errorf("%+v to %q", r, to)
	}
}

// TestKnownCoordinator: only a coordinator that answered before is awaited longer, and no round
// takes longer for it.
func TestKnownCoordinator(t *testing.T) {
	for _, known := range []bool{false, true} {
		x := newTrip(t)
		x.Session = NewSession(x.self, x.want, nodes(6), func(n NodeID) bool { return known }, x.now)
		begin, left := x.now, time.Duration(0)
		for x.Next(x.now).Kind == AskStep {
			if left == 0 && x.Next(x.now).Node != x.order[0] {
				left = x.now.Sub(begin)
			}
			x.pass(time.Millisecond)
		}
		want := AnswerTime
		if known {
			want = knownTime
		}
		if took := x.now.Sub(begin); left != want || took != want+AnswerTime || took > roundTime {
			t.Errorf("known %t: left it after %v, decided after %v", known, left, took)
		}
	}
}

func TestRefusedAtOnce(t *testing.T) {
	x := newTrip(t)
	x.Unanswered(x.order[3], x.now) // which was not asked
	x.asks(x.order[0])
	x.Unanswered(x.order[0], x.now)
	x.asks(x.order[1])
	x.Answered(x.order[1], Answer{Kind: Fetch, Term: Term}, x.now)
	x.fetches(false)
	if _, to := x.Report(Progress, x.order[2:]); !slices.Equal(to, []NodeID{x.order[2], x.order[3], x.order[1]}) {
		t.Errorf("reports to %q", to)
	}
}

func TestRedirected(t *testing.T) {
	for name, c := range map[string]struct {
		node NodeID
		ok   bool
	}{"higher": {"", true}, "lower": {"lower", false}, "this node": {"self", false}, "the same": {"same", false}} {
		x := newTrip(t)
		x.order = x.order[1:] // the first is not known to this one
		x.Session = NewSession(x.self, x.want, x.order, nil, x.now)
		x.asks(x.order[0])
		to := Rank(x.want.Nar, nodes(6))[0]
		switch c.node {
		case "lower":
			to = x.order[1]
		case "self":
			to = x.self
		case "same":
			to = x.order[0]
		}
		x.Answered(x.order[0], Answer{Kind: Redirect, Node: to, Addr: "there"}, x.now)
		if !c.ok {
			x.asks(x.order[1])
			continue
		}
		if r := x.asks(to); r.Hops != 1 || x.Next(x.now).Addr != "there" {
			t.Errorf("%s: %+v", name, r)
		}
		// It is dead: the one that redirected decides.
		x.pass(AnswerTime)
		if r := x.asks(x.order[0]); r.Hops != 1 || !slices.Equal(r.Tried, []NodeID{to}) {
			t.Errorf("%s: %+v", name, r)
		}
		x.Answered(x.order[0], follow("s"), x.now)
		x.follows("s")
	}
}

// TestSentRound: however coordinators redirect a node, it decides in time, and asks what they
// accept.
func TestSentRound(t *testing.T) {
	for name, answers := range map[string]func(x *trip, node NodeID) bool{
		"all":       func(*trip, NodeID) bool { return true },
		"the known": func(x *trip, node NodeID) bool { return node == x.order[4] },
		"nobody":    func(*trip, NodeID) bool { return false },
	} {
		for _, known := range []bool{false, true} {
			x := newTrip(t)
			x.Session = NewSession(x.self, x.want, x.order[4:], func(NodeID) bool { return known }, x.now)
			begin := x.now
			for x.Next(x.now).Kind == AskStep && x.now.Sub(begin) < time.Minute {
				step := x.Next(x.now)
				if _, err := DecodeRequest(step.Request.Append(nil)); err != nil {
					t.Fatalf("%s: %+v: %v", name, step.Request, err)
				}
				x.now = step.Until.Add(-1)
				if answers(x, step.Node) {
					i := max(slices.Index(x.order, step.Node)-1, 0)
					for i > 0 && slices.Contains(step.Request.Tried, x.order[i]) {
						i--
					}
					x.Answered(step.Node, Answer{Kind: Redirect, Node: x.order[i]}, x.now)
				} else {
					x.pass(1)
				}
			}
			x.fetches(true)
			if took := x.now.Sub(begin); took > roundTime {
				t.Errorf("%s: decided after %v", name, took)
			}
		}
	}
}

// TestUsableSources: only forms that this node wants are followed, in the size that it knows.
func TestUsableSources(t *testing.T) {
	const raw = 4 * big
	for name, c := range map[string]struct {
		claim Source
		want  source.Sized // zero: not followed
	}{
		"the preferred form":            {Source{Form: xzForm, Size: big, Bytes: 5}, source.Sized{Form: xzForm, Size: big}},
		"the other one":                 {Source{Size: raw, Bytes: 5}, source.Sized{Size: raw}},
		"another size":                  {Source{Form: xzForm, Size: big - 1, Bytes: 5}, source.Sized{}},
		"raw of another size":           {Source{Size: raw + 1, Bytes: 5}, source.Sized{}},
		"a file that nobody named":      {Source{Form: zstdForm, Size: big, Bytes: 5}, source.Sized{}},
		"all of such a file":            {Source{Form: zstdForm, Size: 7, Bytes: 7}, source.Sized{Size: raw}},
		"all of a file of another size": {Source{Form: xzForm, Size: 7, Bytes: 7}, source.Sized{Size: raw}},
	} {
		x := newTrip(t)
		c.claim.Node = "s"
		x.Answered(x.order[0], Answer{Kind: Follow, Sources: []Source{c.claim}}, x.now)
		if c.want.Size == 0 {
			x.asks(x.order[1])
			continue
		}
		x.follows("s")
		if s := x.Next(x.now).Sources[0]; s.Form != c.want.Form || s.Size != c.want.Size || s.Bytes > s.Size {
			t.Errorf("%s: %+v", name, s)
		}
	}
	// Once bytes are here, their form is that of all.
	x := newTrip(t)
	x.Received("", xzForm, 10, 10)
	x.Answered(x.order[0], Answer{Kind: Follow, Sources: []Source{{Node: "s", Size: raw, Bytes: 50}}}, x.now)
	x.asks(x.order[1])
}

func TestFollowing(t *testing.T) {
	x := newTrip(t)
	x.Answered(x.order[0], follow(x.self), x.now) // nonsense
	x.asks(x.order[1])
	x.Answered(x.order[1], follow("p", x.self, "q"), x.now)
	x.follows("p", "q")
	x.Received("p", xzForm, 500, 500)
	if r, to := x.Report(Progress, nodes(6)); r.From != "p" || r.Bytes != 500 || !slices.Equal(to, x.order[:2]) {
		t.Errorf("%+v to %q", r, to)
	}
	x.Received("q", xzForm, 900, 900)
	x.pass(StallTime)
	x.Stalled("q", nodes(6), x.now) // which claimed 1000
	if r := x.asks(x.order[0]); r.Bytes != 900 || !slices.Equal(r.Failed, []NodeID{"q"}) {
		t.Errorf("%+v", r)
	}
	x.Answered(x.order[0], follow("p", "q"), x.now)
	x.follows("p")
	x.Received("p", xzForm, 1000, 1000)
	x.Stalled("p", nodes(6), x.now) // which had no more
	if r := x.asks(x.order[0]); len(r.Failed) != 1 {
		t.Errorf("%+v", r)
	}
}

// TestPatience: a coordinator that names dead or idle sources for ever is not followed for ever,
// and single bytes do not extend it.
func TestPatience(t *testing.T) {
	for name, c := range map[string]struct {
		claimed int64 // by the source
		each    int64 // bytes that come in each turn
		most    time.Duration
	}{
		"idle sources":            {0, 0, patience + StallTime},
		"a byte a turn":           {0, 1, patience + StallTime},
		"claims, and nothing":     {big, 0, patience + StallTime},
		"100 KiB/s":               {0, 100 << 10, time.Hour},
		"always the same failure": {1000, 0, patience + StallTime},
	} {
		x := newTrip(t)
		begin, got := x.now, int64(0)
		for i := 0; x.Next(x.now).Kind == AskStep && x.now.Sub(begin) < time.Hour; i++ {
			a := follow(NodeID("s" + string(rune('0'+i%10)) + string(rune('0'+i/10%10))))
			a.Sources[0].Bytes = c.claimed
			if x.Answered(x.order[0], a, x.now); x.Next(x.now).Kind == AskStep {
				continue
			}
			x.pass(StallTime)
			got += c.each
			x.Received("s", xzForm, got, got)
			x.Stalled(x.Next(x.now).Sources[0].Node, nodes(6), x.now)
		}
		if took := x.now.Sub(begin); took > c.most || c.most == time.Hour && took < 15*time.Minute {
			t.Errorf("%s: followed for %v", name, took)
		}
	}
}

func TestYields(t *testing.T) {
	x := newTrip(t)
	x.Answered(x.order[0], Answer{Kind: Fetch, Term: Term}, x.now)
	x.Received("", xzForm, 1000, 1000)
	x.Answered(x.order[0], Answer{Kind: Fetch, Term: Term}, x.now)
	x.Answered(x.order[0], Answer{Kind: Noted}, x.now)
	x.fetches(false)
	var below NodeID = "below"
	for Outranks(x.want.Nar, below, x.self) {
		below += "."
	}
	for name, a := range map[string]Answer{
		"a lower one that is as far":  follow(below),
		"a higher one that is behind": {Kind: Follow, Sources: []Source{{Node: x.order[0], Form: xzForm, Size: big, Bytes: 999}}},
		"another file":                {Kind: Follow, Sources: []Source{{Node: x.order[0], Form: zstdForm, Size: big, Bytes: 1000}}},
		"another size":                {Kind: Follow, Sources: []Source{{Node: x.order[0], Form: xzForm, Size: big + 1, Bytes: 1000}}},
	} {
		x.Answered(x.order[0], a, x.now)
		if s := x.Next(x.now); s.Kind != FetchStep {
			t.Errorf("yields to %s", name)
		}
	}
	x.Answered(x.order[0], follow(x.order[2]), x.now)
	x.follows(x.order[2])
	x.Failed(x.order[2])
	x.Again(nodes(6), x.now)
	if r := x.asks(x.order[0]); r.Bytes != 1000 {
		t.Errorf("%+v", r)
	}
	x.Answered(x.order[0], Answer{Kind: Fetch, Term: Term}, x.now)
	x.Answered(x.order[0], follow(x.order[1]), x.now)
	x.fetches(false) // once is enough
}

// TestFetchAnyway: a node whose time budget is used up is not sent back to follow.
func TestFetchAnyway(t *testing.T) {
	x := newTrip(t)
	x.Answered(x.order[0], follow("s"), x.now)
	x.follows("s")
	x.FetchAnyway()
	x.fetches(true)
	x.Answered(x.order[0], follow(x.order[0]), x.now)
	x.fetches(true)
	if r, to := x.Report(Progress, nodes(6)); r.From != "" || len(to) != maxRanks {
		t.Errorf("%+v to %q", r, to)
	}
}

// TestReportsOfSmall: nobody follows a follower of a small NAR.
func TestReportsOfSmall(t *testing.T) {
	x := newTrip(t)
	x.Session = NewSession(x.self, Want{Nar: x.want.Nar, Forms: []source.Sized{{Size: smallNAR - 1}}}, nodes(6), nil, x.now)
	x.Answered(x.order[0], Answer{Kind: Follow, Sources: []Source{{Node: "s", Size: smallNAR - 1}}}, x.now)
	if _, to := x.Report(Progress, nodes(6)); to != nil {
		t.Errorf("a follower reports to %q", to)
	}
	x.FetchAnyway()
	if _, to := x.Report(Progress, nodes(6)); len(to) != 1 {
		t.Errorf("a fetcher reports to %q", to)
	}
	if _, to := x.Report(Release, nodes(6)); len(to) != maxRanks {
		t.Errorf("it is released at %q", to)
	}
}

// TestFailedBounds: questions list the last ones that failed, and beyond a bound the node goes
// upstream.
func TestFailedBounds(t *testing.T) {
	x := newTrip(t)
	all := nodes(maxFailed)
	for _, n := range all[:20] {
		x.Failed(n)
	}
	x.Again(nil, x.now)
	if failed := x.Next(x.now).Request.Failed; !slices.Equal(failed, all[12:20]) {
		t.Errorf("%q", failed)
	}
	for _, n := range all {
		x.Failed(n)
	}
	x.Again(nodes(6), x.now)
	x.fetches(true)
}
