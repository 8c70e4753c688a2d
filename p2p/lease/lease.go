// Package lease agrees within a site which node fetches a NAR that nobody has yet, and from
// whom the others take it while it arrives. For each NAR hash one node, found by Rank, is the
// coordinator. A node asks it through a Client; the Coordinator answers, so that one node
// goes upstream and the others follow in a tree.
//
// The decisions are pure: a Session decides for the node that asks, a Coordinator for the one
// that answers, and both are given the time. The Client carries a Session's decisions out.
// Neither moves bytes of a NAR.
//
// Everything that another node says is a claim. It may cost the asker at most a round of
// questions (one second in all); how long following may take is decided by the time budget of
// the transfer, never by what nodes report of themselves. A form or a size is used only if the
// asker knows it from elsewhere.
package lease

import (
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// NodeID names a node: the bytes of its peer ID, at most MaxNodeID of them.
type NodeID string

// Times that both sides use.
const (
	// Term is how long a lease runs without more bytes.
	Term = 10 * time.Second
	// AnswerTime is how long an answer to one question is awaited.
	AnswerTime = 250 * time.Millisecond
	// ReportEvery is how often a node that fetches or follows reports how far it is: several
	// times in a Term, so that a lost report does not matter.
	ReportEvery = 2 * time.Second
	// StallTime is how long a follower waits for bytes before it asks again.
	StallTime = time.Second
)

const (
	// MaxHops is how often a question may be redirected to a higher-ranked node.
	MaxHops = 2
	// maxRanks is how many coordinators of its own choice a node asks in one round.
	maxRanks = 2
	// roundTime bounds a round of questions: two coordinators of the node's own choice, and
	// two that it is redirected to.
	roundTime = (maxRanks + MaxHops) * AnswerTime
	// MaxSources is how many nodes a follower is told of.
	MaxSources = 8
	// maxNamed bounds the lists of nodes in a question.
	maxNamed = 8
	// smallNAR is the size below which a NAR arrives before a follower could pass it on.
	smallNAR = 1 << 20
)

// Verb is what a Request is about.
type Verb uint8

// The requests.
const (
	Ask      Verb = 1 // where to take a NAR from
	Progress Verb = 2 // how far the sender is with it
	Release  Verb = 3 // the sender has nothing of it any more
)

// Request is what a node sends to a coordinator. The sender is known from the connection. A
// node may mention a NAR only if a share key signed its narinfo.
type Request struct {
	Verb Verb
	Nar  nix.NarHash
	// Form is that in which the sender gets the NAR, and others can have it from there. A
	// sender that has nothing yet names the form that it would fetch.
	Form nix.Form
	// Size of that form, and how many Bytes of it, from its beginning, others can have from
	// the sender. Equal numbers claim that it has the whole, verified.
	Size, Bytes int64
	// Got is how many bytes it has received, including those that it holds back until the
	// whole is verified. Less than Bytes counts as Bytes.
	Got int64
	// Alone says that nobody can follow the sender. This version never sets it.
	Alone bool
	// From is the node from which the sender of a Progress takes the bytes; "" is upstream.
	From NodeID
	// Hops is how often an Ask was redirected.
	Hops int
	// Tried are coordinators that did not answer. An Ask is not redirected to them.
	Tried []NodeID
	// Failed are sources that could not be reached by the sender, or did not have what they
	// claimed: they are not named to it.
	Failed []NodeID
}

// Kind is what an Answer says.
type Kind uint8

// The answers.
const (
	Noted    Kind = 1 // to Progress and Release
	Fetch    Kind = 2 // go upstream, from the byte on that you have
	Follow   Kind = 3 // take it from these nodes
	Redirect Kind = 4 // ask that node
)

// Answer is what a coordinator replies. The answer to a Progress from a fetcher may be Fetch
// (go on), Follow (another node fetches the same and is further: follow that one) or Noted.
type Answer struct {
	Kind Kind
	// Term of a Fetch is what is left of the lease.
	Term time.Duration
	// Sources of a Follow, at most MaxSources, the best first.
	Sources []Source
	// Node of a Redirect, and an address of it for those that are not connected to it. A
	// Coordinator leaves the address to its caller.
	Node NodeID
	Addr string
}

// Source is a node that claims to have a NAR or a part of it.
type Source struct {
	Node NodeID
	Addr string // as in Answer
	// Form in which it can be had there, its Size, how many Bytes of it were there when the
	// node last reported, equal to Size if it has all, and how many it had Got by then.
	Form             nix.Form
	Size, Bytes, Got int64
}

// Whole reports whether the source claims to have all of it.
func (s Source) Whole() bool { return s.Bytes == s.Size }
