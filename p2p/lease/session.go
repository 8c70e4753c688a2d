package lease

import (
	"slices"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
)

// Want is a NAR that a node wants.
type Want struct {
	Nar nix.NarHash
	// Forms are those that are of use, at least one, with their sizes as this node knows
	// them, the one that it would fetch first.
	Forms []source.Sized
	// Fixed: only the nodes that the Asker knows coordinate, and none of them redirects to one
	// that it knows.
	Fixed bool
}

// StepKind is what a Step is.
type StepKind uint8

// The steps.
const (
	// AskStep: send Request to Node, which may be the node itself, and pass the result to
	// Answered or Unanswered; at Until call Next again.
	AskStep StepKind = 1
	// FetchStep: go upstream from the byte on that is there.
	FetchStep StepKind = 2
	// FollowStep: take it from Sources, trying them in order.
	FollowStep StepKind = 3
)

// Step is what a node does next for a NAR.
type Step struct {
	Kind StepKind

	// Of AskStep.
	Node    NodeID
	Addr    string // if Node is not connected; "" if it is one that the node itself knows
	Request Request
	Until   time.Time

	// Of FetchStep. Direct: no coordinator allowed it.
	Direct bool

	// Of FollowStep. Form and Size are as the node itself knows them.
	Sources []Source
}

const (
	// knownTime is how long a coordinator that has answered before is awaited: it may be
	// busy, as all are when a site starts at once. It leaves time for one more question.
	knownTime = roundTime - AnswerTime
	// patience is how long a node waits and follows in all, for one NAR. Bytes extend it by
	// their number divided by patienceRate. It matters only while upstream is down: otherwise
	// the time budget of the transfer ends earlier.
	patience     = 30 * time.Second
	patienceRate = 32 << 10
	// maxFailed bounds the sources that are remembered as failed. Beyond that, the node
	// goes upstream.
	maxFailed = 64
)

// Session is one node's way to one NAR, from the first question until it has all. A round of
// questions takes at most roundTime, and a source that failed is not followed again. It is not
// safe for concurrent use.
type Session struct {
	self     NodeID
	want     Want
	answered func(NodeID) bool // has answered before
	form     source.Sized      // of the bytes that came, else the preferred one
	fixed    bool              // bytes came
	bytes    int64             // that others can read from here
	got      int64             // received

	step    Step
	from    NodeID   // gives now; "" upstream
	told    NodeID   // the coordinator that answered last
	failed  []NodeID // sources
	yielded bool     // left fetching to another node once
	direct  bool     // fetches whatever the site says

	round  round
	waited time.Duration // in rounds and turns that are over
}

// round is one round of questions.
type round struct {
	began time.Time
	ranks []NodeID // that this node knows, the best first, not asked yet
	tried []NodeID // did not answer, or gave an answer that cannot be
	hops  int
	back  NodeID // redirected this node to the one that is asked now
}

// NewSession begins a Session of the node self. Live are the nodes that it knows to be up;
// answered reports whether one of them has answered a question before (nil: none has).
func NewSession(self NodeID, want Want, live []NodeID, answered func(NodeID) bool, now time.Time) *Session {
	s := &Session{self: self, want: want, form: want.Forms[0], answered: answered}
	s.ask(live, now)
	return s
}

// Next returns what to do now. It stays the same until the Session is told something, or the
// time of an AskStep is over.
func (s *Session) Next(now time.Time) Step {
	for s.step.Kind == AskStep && !now.Before(s.step.Until) {
		s.refuse(s.step.Node, now)
	}
	return s.step
}

// Answered takes the answer of a coordinator to a question or to a report. An answer to a
// question that is no longer awaited is ignored.
func (s *Session) Answered(from NodeID, a Answer, now time.Time) {
	switch {
	case s.step.Kind == AskStep && s.step.Node == from:
		s.accept(from, a, now)
	case s.step.Kind == FetchStep && a.Kind == Follow && s.from == "" && !s.direct && !s.yielded:
		s.yield(from, a, now)
	}
}

// accept does as a coordinator says, or asks the next one if that is not possible.
func (s *Session) accept(from NodeID, a Answer, now time.Time) {
	switch a.Kind {
	case Fetch:
		s.told, s.from = from, ""
		s.step = Step{Kind: FetchStep}
	case Follow:
		list := s.usable(a.Sources)
		if len(list) == 0 {
			s.refuse(from, now)
			return
		}
		s.told, s.from = from, list[0].Node
		s.step = Step{Kind: FollowStep, Sources: list}
	case Redirect:
		known := a.Node == s.self || slices.Contains(s.round.tried, a.Node)
		if known || s.round.hops == MaxHops || !Outranks(s.want.Nar, a.Node, from) {
			s.refuse(from, now)
			return
		}
		s.round.hops++
		s.round.back = from
		s.question(a.Node, a.Addr, now)
	default:
		s.refuse(from, now)
	}
}

// yield leaves fetching to another node, once. Only one that this node itself prefers is
// followed, whoever says so: otherwise two could wait for each other.
func (s *Session) yield(from NodeID, a Answer, now time.Time) {
	list := slices.DeleteFunc(s.usable(a.Sources), func(o Source) bool {
		return !yieldsTo(s.want.Nar, s.self, s.form, s.bytes, o)
	})
	if len(list) > 0 {
		s.told, s.from, s.yielded = from, list[0].Node, true
		s.step = Step{Kind: FollowStep, Sources: list}
		s.round.began = now
	}
}

// usable returns the sources that this node can use: others than itself that have not failed,
// in a form and size that it knows. One that claims to have all can decode it: it is asked for
// raw, if that is wanted.
func (s *Session) usable(list []Source) (use []Source) {
	forms := s.want.Forms
	if s.fixed {
		forms = []source.Sized{s.form}
	}
	for _, o := range list {
		if o.Node == s.self || slices.Contains(s.failed, o.Node) {
			continue
		}
		for _, f := range forms {
			if f.Form == o.Form && f.Size == o.Size {
				use = append(use, o)
				break
			}
			if f.Form.IsRaw() && o.Whole() {
				o.Form, o.Size, o.Bytes, o.Got = f.Form, f.Size, f.Size, f.Size
				use = append(use, o)
				break
			}
		}
	}
	return use
}

// Unanswered says that a coordinator cannot be reached, or that its answer is malformed.
func (s *Session) Unanswered(from NodeID, now time.Time) {
	if s.step.Kind == AskStep && s.step.Node == from {
		s.refuse(from, now)
	}
}

// Received says in which form bytes come, from whom ("" for upstream), how many of them
// others can read from here, and how many are here in all. Only those count that follow each
// other from the first on.
func (s *Session) Received(from NodeID, form nix.Form, bytes, got int64) {
	for _, f := range s.want.Forms {
		if f.Form == form {
			s.form = f
		}
	}
	s.from, s.bytes, s.got = from, min(bytes, s.form.Size), min(max(got, bytes), s.form.Size)
	s.fixed = s.fixed || s.got > 0
}

// Failed says that a source could not be reached, did not have the NAR, or gave nothing
// although it claimed to have more than this node. One that is only busy did not fail.
func (s *Session) Failed(source NodeID) {
	if !slices.Contains(s.failed, source) {
		s.failed = append(s.failed, source)
	}
}

// Stalled says that too little came from a source for StallTime. It failed if it claimed to
// have more than this node. Then the node asks Again: the coordinator knows whether somebody
// still fetches.
func (s *Session) Stalled(source NodeID, live []NodeID, now time.Time) {
	for _, o := range s.step.Sources {
		if o.Node == source && o.Bytes > s.bytes {
			s.Failed(source)
		}
	}
	s.Again(live, now)
}

// Again begins another round of questions, because the sources ended or failed. Live are the
// nodes that are known to be up now. A fetcher whose upstream failed sends Release first, or it
// is told to fetch again.
func (s *Session) Again(live []NodeID, now time.Time) {
	if s.step.Kind == FollowStep {
		s.waited += now.Sub(s.round.began)
	}
	s.direct = false
	worth := time.Duration(float64(s.got) / patienceRate * float64(time.Second))
	if len(s.failed) >= maxFailed || s.waited > patience+worth {
		s.fetchDirect()
		return
	}
	s.ask(live, now)
}

// FetchAnyway says that the node fetches from upstream now, whatever the site says: its time
// budget is used up.
func (s *Session) FetchAnyway() {
	s.fetchDirect()
	s.direct = true
}

// Report returns a report and who gets it: the coordinator that answered last, the one that
// ranks first now, and from a fetcher the next in rank, which would be asked if that one died.
// They may include the node itself. There is nobody to tell about a small NAR that is
// followed, nor while the node asks: its question says as much.
func (s *Session) Report(verb Verb, live []NodeID) (r Request, to []NodeID) {
	small := s.form.Size < smallNAR
	switch {
	case verb != Progress:
	case s.step.Kind == AskStep && s.bytes < s.form.Size, small && s.from != "":
		return Request{}, nil
	}
	r = s.request(verb)
	if verb == Progress {
		r.From = s.from
	}
	to = Rank(s.want.Nar, append(slices.Clone(live), s.self))
	if s.from == "" && !(small && verb == Progress) {
		to = to[:min(len(to), maxRanks)]
	} else {
		to = to[:1]
	}
	if s.told != "" && !slices.Contains(to, s.told) {
		to = append(to, s.told)
	}
	return r, to
}

func (s *Session) request(verb Verb) Request {
	last := s.failed[max(len(s.failed)-maxNamed, 0):]
	return Request{
		Verb: verb, Nar: s.want.Nar, Form: s.form.Form, Size: s.form.Size, Bytes: s.bytes, Got: s.got, Failed: slices.Clone(last),
	}
}

// ask begins a round.
func (s *Session) ask(live []NodeID, now time.Time) {
	ranks := Rank(s.want.Nar, append(slices.Clone(live), s.self))
	s.round = round{began: now, ranks: ranks[:min(len(ranks), maxRanks)]}
	if s.want.Fixed {
		s.round.hops = MaxHops
	}
	s.next(now)
}

// next asks the next coordinator, or goes upstream. A coordinator that redirected to one that
// does not answer is asked again: it is the best one left.
func (s *Session) next(now time.Time) {
	r := &s.round
	if back := r.back; back != "" && !slices.Contains(r.tried, back) {
		r.back = ""
		s.question(back, "", now)
		return
	}
	for len(r.ranks) > 0 {
		node := r.ranks[0]
		r.ranks = r.ranks[1:]
		if !slices.Contains(r.tried, node) {
			s.question(node, "", now)
			return
		}
	}
	s.fetchDirect()
}

func (s *Session) question(node NodeID, addr string, now time.Time) {
	until := now.Add(AnswerTime)
	if s.answered != nil && s.answered(node) {
		until = later(until, s.round.began.Add(knownTime))
	}
	if ends := s.round.began.Add(roundTime); until.After(ends) {
		until = ends
	}
	if !now.Before(until) {
		s.fetchDirect()
		return
	}
	r := s.request(Ask)
	r.Hops, r.Tried = s.round.hops, slices.Clone(s.round.tried)
	s.step = Step{Kind: AskStep, Node: node, Addr: addr, Request: r, Until: until}
}

// refuse leaves a coordinator that is no help.
func (s *Session) refuse(node NodeID, now time.Time) {
	s.round.tried = append(s.round.tried, node)
	s.next(now)
}

func (s *Session) fetchDirect() {
	s.told, s.from = "", ""
	s.step = Step{Kind: FetchStep, Direct: true}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
