// Package lease decides who of a site fetches a NAR that nobody has yet, and from whom the
// others take it while it comes. For each NAR hash one node, found by Rank, is coordinator:
// its Table answers those who ask, each of whom goes through a Session, so that one goes
// upstream and the others follow in a tree. All of it is words and decisions: time and
// addresses come from the caller, and it opens nothing, starts nothing and stores no data.
package lease

import (
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// NodeID names a node: the bytes of its peer ID, at most MaxNodeID of them.
type NodeID string

// Times that both sides go by.
const (
	// Term is how long a lease runs without more bytes.
	Term = 10 * time.Second
	// AnswerTime is how long a coordinator is waited for.
	AnswerTime = 250 * time.Millisecond
	// ReportEvery is how often whoever fetches or follows says how far it is: several times
	// in a Term, so that one lost report costs nothing.
	ReportEvery = 2 * time.Second
	// StallTime is how long a follower waits for a byte before it asks again.
	StallTime = 2 * time.Second
	// Patience is how long a node that is told to follow stays without a byte, and without
	// news that its sources get some, before it goes upstream, whatever it is told. It is
	// longer than a Term, so that it cannot end what a coordinator is about to mend.
	Patience = 15 * time.Second
	// Forbearance is how long it stays without a byte for itself, whatever its sources get:
	// on a bad line the tail that they hold back until it is proven takes its time.
	Forbearance = time.Minute
)

const (
	// MaxHops is how often a question may be sent on to a higher-ranked node.
	MaxHops = 2
	// maxRanks is how many coordinators of its own choice a node asks in one round.
	maxRanks = 2
	// MaxSources is how many nodes a follower is told of.
	MaxSources = 8
	// maxNamed bounds the lists of nodes in a question.
	maxNamed = 8
)

// Verb says what a Request is about.
type Verb uint8

// The requests.
const (
	Ask      Verb = 1 // where to take a NAR from
	Progress Verb = 2 // how far the sender is with it
	Release  Verb = 3 // the sender has nothing of it any more
)

// Request is what a node says to a coordinator. Who says it is known from the connection.
// A node may speak of a NAR only if a share key signed its narinfo: the question alone tells
// what it wants.
type Request struct {
	Verb Verb
	Nar  nix.NarHash
	// Form is that in which the sender gets the NAR, and others can have it from there. Who
	// asks and has nothing yet names the form that it would fetch.
	Form nix.Form
	// Size of that form, and how many Bytes of it others can have from the sender, from its
	// beginning on. Equal numbers say that it has the whole, proven.
	Size, Bytes int64
	// Got is how many bytes it has received, those included that it holds back until the
	// whole is proven. Less than Bytes counts as Bytes.
	Got int64
	// Alone: nobody can follow the sender, who keeps nothing.
	Alone bool
	// From is whom the sender of a Progress takes the bytes from; "" is upstream.
	From NodeID
	// Hops is how often an Ask was sent on.
	Hops int
	// Tried are coordinators that did not answer, to whom an Ask is not to be sent on.
	Tried []NodeID
	// Failed are sources that could not be reached, or did not have what was said of them.
	Failed []NodeID
}

// Kind says what an Answer tells.
type Kind uint8

// The answers.
const (
	Noted     Kind = 1 // to Progress and Release
	Fetch     Kind = 2 // go upstream, from the byte on that you have
	Follow    Kind = 3 // take it from these
	Elsewhere Kind = 4 // ask that node
)

// Answer is what a coordinator says. To a Progress from upstream it may be Fetch (go on),
// Follow (another one fetches the same and is further: leave it to that one) or Noted.
type Answer struct {
	Kind Kind
	// Term of a Fetch is what is left of the lease.
	Term time.Duration
	// Sources of a Follow, at most MaxSources, the best first.
	Sources []Source
	// Node of an Elsewhere, and an address of it for those who are not connected to it: a
	// Table leaves that to its caller.
	Node NodeID
	Addr string
}

// Source is a node that has a NAR or a part of it. What it says is a claim, as all that comes
// from peers.
type Source struct {
	Node NodeID
	Addr string // as in Answer
	// Form in which it can be had there, its Size, how many Bytes of it were there when the
	// node last said so, equal to Size when it has all, and how many it, or the one who
	// fetches for it, had Got by then.
	Form             nix.Form
	Size, Bytes, Got int64
}

// Whole tells that the source had all of it.
func (s Source) Whole() bool { return s.Bytes == s.Size }
