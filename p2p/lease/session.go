package lease

import (
	"slices"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Want is a NAR that a node wants, in the form that it would fetch or has a part of.
type Want struct {
	Nar  nix.NarHash
	Form nix.Form
	// Size of the form, more than 0, how many Bytes of it others can have from here, and how
	// many this node has Got.
	Size, Bytes, Got int64
	// Alone: the node keeps nothing that others could follow.
	Alone bool
}

// StepKind says what a Step is.
type StepKind uint8

// The steps.
const (
	// DoAsk: send Request to Node, which may be the node itself, and give what comes of it
	// to Answered or Unanswered; at the latest at Until call Next again.
	DoAsk StepKind = 1
	// DoFetch: go upstream from the byte on that is there.
	DoFetch StepKind = 2
	// DoFollow: take it from Sources, trying them in order.
	DoFollow StepKind = 3
)

// Step is what a node does next for a NAR.
type Step struct {
	Kind StepKind

	// Of DoAsk.
	Node    NodeID
	Addr    string // for when Node is not connected; "" for those of one's own view
	Request Request
	Until   time.Time

	// Of DoFetch. Direct: nobody was there to allow it.
	Direct bool

	// Of DoFollow.
	Sources []Source
}

// Session is one node on its way to one NAR, from the first question until it has all. It
// ends by itself in DoFetch whenever nobody helps: from NewSession or Again to DoFetch or
// DoFollow it is no longer than roundTime, and without bytes it follows no longer than
// Patience. It is not safe for concurrent use.
type Session struct {
	self NodeID
	want Want

	step   Step
	from   NodeID    // who gives now; "" upstream
	told   NodeID    // the coordinator that answered last
	moved  time.Time // when bytes came last
	hope   time.Time // when somebody was last said to get some
	coming int64     // how many
	failed []failure // the last ones
	misses int       // rounds in which sources failed and no byte came

	// Of the round of questions that goes on.
	ends  time.Time
	ranks []NodeID // coordinators of the own view, the best first
	tried []NodeID // did not answer, or said what cannot be
	asked int      // how many of ranks were
	hops  int
	back  NodeID // who sent this node on to the one that is asked now
}

// roundTime is how long a node asks around: two coordinators of its own choice, and two that
// it is sent on to.
const roundTime = (maxRanks + MaxHops) * AnswerTime

// failure is a source that failed. It may have come back after failedFor.
type failure struct {
	node NodeID
	at   time.Time
}

const failedFor = 10 * time.Second

// maxMisses is how many times sources that one is told of may fail without a byte in between:
// once because something died, twice because the coordinator did not know yet.
const maxMisses = 3

// NewSession begins a Session of the node self. Live are the nodes that it knows to be up.
func NewSession(self NodeID, want Want, live []NodeID, now time.Time) *Session {
	s := &Session{self: self, want: want, moved: now}
	s.round(live, now)
	return s
}

// Next returns what is to be done now. It is the same until something is said to the Session,
// or the time of a DoAsk is over.
func (s *Session) Next(now time.Time) Step {
	for s.step.Kind == DoAsk && !now.Before(s.step.Until) {
		s.refuse(s.step.Node, now)
	}
	return s.step
}

// Answered gives the answer of a coordinator to a question or to a report. One to a question
// that is not waited for any more is passed over.
func (s *Session) Answered(from NodeID, a Answer, now time.Time) {
	switch {
	case s.step.Kind == DoAsk && s.step.Node == from:
		s.take(from, a, now)
	case s.step.Kind == DoFetch && a.Kind == Follow && s.from == "":
		s.yield(from, a, now)
	}
}

// take goes on as a coordinator says, or to the next one when that cannot be.
func (s *Session) take(from NodeID, a Answer, now time.Time) {
	switch a.Kind {
	case Fetch:
		s.told, s.from = from, ""
		s.step = Step{Kind: DoFetch}
	case Follow:
		list := s.possible(a.Sources, now)
		if len(list) == 0 {
			s.refuse(from, now)
			return
		}
		s.told, s.from = from, list[0].Node
		s.step = Step{Kind: DoFollow, Sources: list}
		for _, o := range list {
			if o.Form == s.want.Form && o.Got > s.coming {
				s.coming, s.hope = o.Got, now
			}
		}
	case Elsewhere:
		known := a.Node == s.self || slices.Contains(s.tried, a.Node)
		if known || s.hops == MaxHops || !Outranks(s.want.Nar, a.Node, from) {
			s.refuse(from, now)
			return
		}
		s.hops++
		s.back = from
		s.ask(a.Node, a.Addr, now)
	default:
		s.refuse(from, now)
	}
}

// yield leaves fetching to another node. Only one that this node should give way to by its
// own count is followed, whoever says so: else two could wait for each other.
func (s *Session) yield(from NodeID, a Answer, now time.Time) {
	list := slices.DeleteFunc(s.possible(a.Sources, now), func(o Source) bool {
		return !yieldsTo(s.want.Nar, s.self, s.want.Form, s.want.Bytes, o)
	})
	if len(list) > 0 {
		s.told, s.from = from, list[0].Node
		s.step = Step{Kind: DoFollow, Sources: list}
	}
}

// possible leaves out sources that failed, and this node.
func (s *Session) possible(list []Source, now time.Time) []Source {
	return slices.DeleteFunc(slices.Clone(list), func(o Source) bool {
		return o.Node == s.self || s.hasFailed(o.Node, now)
	})
}

func (s *Session) hasFailed(node NodeID, now time.Time) bool {
	return slices.ContainsFunc(s.failed, func(f failure) bool { return f.node == node && now.Sub(f.at) < failedFor })
}

// Unanswered says that a coordinator cannot be reached, or said what is no answer.
func (s *Session) Unanswered(from NodeID, now time.Time) {
	if s.step.Kind == DoAsk && s.step.Node == from {
		s.refuse(from, now)
	}
}

// Moved says that there are so many bytes of the form now, and from whom the last of them
// came, "" for upstream. Bytes and got are as in a Request: only those that follow each other
// from the first on, and bytes are all of them only when they are proven.
func (s *Session) Moved(from NodeID, form nix.Form, size, bytes, got int64, now time.Time) {
	if got = max(got, bytes); got > s.want.Got || form != s.want.Form {
		s.moved, s.misses = now, 0
	}
	s.from = from
	s.want.Form, s.want.Size, s.want.Bytes, s.want.Got = form, size, bytes, got
}

// Failed says that a source could not be reached, did not have the NAR, or gave nothing
// although it was said to have more than this node. One that is only busy did not fail.
func (s *Session) Failed(source NodeID, now time.Time) {
	s.failed = slices.DeleteFunc(s.failed, func(f failure) bool { return f.node == source || now.Sub(f.at) >= failedFor })
	if len(s.failed) == maxNamed {
		s.failed = slices.Delete(s.failed, 0, 1)
	}
	s.failed = append(s.failed, failure{source, now})
}

// Stalled says that nothing came from a source for StallTime. If it was said to have more
// than this node, it failed. Then it asks Again: the coordinator knows whether somebody still
// fetches.
func (s *Session) Stalled(source NodeID, live []NodeID, now time.Time) {
	for _, o := range s.step.Sources {
		if o.Node == source && o.Form == s.want.Form && o.Bytes > s.want.Bytes {
			s.Failed(source, now)
		}
	}
	s.Again(live, now)
}

// Again asks anew, because the sources ended or failed. Live are the nodes that are known to
// be up now. A fetcher whose upstream fails says Release before it asks Again, or it is sent
// there again.
func (s *Session) Again(live []NodeID, now time.Time) {
	if s.step.Kind == DoFollow && slices.ContainsFunc(s.step.Sources, func(o Source) bool { return s.hasFailed(o.Node, now) }) {
		s.misses++
	}
	waited := now.Sub(s.moved)
	if s.misses >= maxMisses || waited >= Forbearance || waited >= Patience && now.Sub(s.hope) >= Patience {
		s.direct()
		return
	}
	s.round(live, now)
}

// Report returns what a node says: Progress when it begins to fetch, every ReportEvery, and
// when it has all; Release when it gives up. To are the coordinator that knows of it, the one
// who is it now, and for a fetcher the next in rank, who would be asked if that one died. It
// may contain the node itself. It is empty where nobody can follow, and for a Progress while
// the node asks: what it says there tells enough.
func (s *Session) Report(verb Verb, live []NodeID, now time.Time) (r Request, to []NodeID) {
	asking := s.step.Kind == DoAsk && s.want.Bytes < s.want.Size
	if s.want.Alone || verb == Progress && asking {
		return Request{}, nil
	}
	r = s.request(verb, now)
	if verb == Progress {
		r.From = s.from
	}
	to = Rank(s.want.Nar, append(slices.Clone(live), s.self))
	if s.from == "" {
		to = to[:min(len(to), maxRanks)]
	} else {
		to = to[:1]
	}
	if s.told != "" && !slices.Contains(to, s.told) {
		to = append(to, s.told)
	}
	return r, to
}

func (s *Session) request(verb Verb, now time.Time) Request {
	w := s.want
	r := Request{Verb: verb, Nar: w.Nar, Form: w.Form, Size: w.Size, Bytes: w.Bytes, Got: w.Got, Alone: w.Alone}
	for _, f := range s.failed {
		if now.Sub(f.at) < failedFor {
			r.Failed = append(r.Failed, f.node)
		}
	}
	return r
}

// round begins to ask.
func (s *Session) round(live []NodeID, now time.Time) {
	s.ranks = Rank(s.want.Nar, append(slices.Clone(live), s.self))
	s.ranks = s.ranks[:min(len(s.ranks), maxRanks)]
	s.tried, s.asked, s.hops, s.back, s.ends = nil, 0, 0, "", now.Add(roundTime)
	s.next(now)
}

// next asks the next coordinator, or gives up asking. Whoever sent this node on to one that
// does not answer is asked again, as it is the best one left.
func (s *Session) next(now time.Time) {
	if back := s.back; back != "" && !slices.Contains(s.tried, back) {
		s.back = ""
		s.ask(back, "", now)
		return
	}
	for s.asked < len(s.ranks) {
		node := s.ranks[s.asked]
		s.asked++
		if !slices.Contains(s.tried, node) {
			s.ask(node, "", now)
			return
		}
	}
	s.direct()
}

func (s *Session) ask(node NodeID, addr string, now time.Time) {
	until := now.Add(AnswerTime)
	if until.After(s.ends) {
		until = s.ends
	}
	if !now.Before(until) {
		s.direct()
		return
	}
	r := s.request(Ask, now)
	r.Hops, r.Tried = s.hops, slices.Clone(s.tried)
	s.step = Step{Kind: DoAsk, Node: node, Addr: addr, Request: r, Until: until}
}

// refuse leaves a coordinator that is no help.
func (s *Session) refuse(node NodeID, now time.Time) {
	s.tried = append(s.tried, node)
	s.next(now)
}

func (s *Session) direct() {
	s.told, s.from = "", ""
	s.step = Step{Kind: DoFetch, Direct: true}
}
