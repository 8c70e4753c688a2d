// Package source is the contract between the sources of narinfos and NARs and those who use
// them: what a source is asked, what it answers, and how an answer fails.
//
// An error of a source is one of three kinds, which are never turned into one another:
//
//   - absent: it wraps fs.ErrNotExist. The source has no such path or NAR, or none that could be
//     served from here (a *RefusedError says so).
//   - invalid: it wraps a *verify.InvalidError. The source answered something wrong.
//   - unavailable: anything else. The source could not answer.
package source

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"time"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Role is the part that a source plays.
type Role uint8

// The sources, in order of cost.
const (
	None     Role = iota // nobody
	Memory               // answers remembered in memory
	Disk                 // narinfos remembered on disk
	Store                // this machine's Nix store
	Cache                // NARs kept on disk
	Peer                 // the other nodes of the site
	Upstream             // HTTP caches
)

// String returns the label of the role in metrics.
func (r Role) String() string {
	switch r {
	case Memory:
		return "memory"
	case Disk:
		return "disk"
	case Store:
		return "store"
	case Cache:
		return "cache"
	case Peer:
		return "peer"
	case Upstream:
		return "upstream"
	default:
		return "none"
	}
}

// Scope says how far a question may go, and who gets the answer.
type Scope uint8

const (
	// All lets every source be asked, for a client on this machine.
	All Scope = 0
	// LocalOnly asks only what needs no network: the question has already been here.
	LocalOnly Scope = 1 << 0
	// PublicOnly is for a client on another machine. A path that no share key signed does not
	// exist for it, in status and in timing, and no request with credentials is made for it.
	PublicOnly Scope = 1 << 1

	// Scopes is the number of values.
	Scopes Scope = 1 << 2
)

// Local reports whether only this machine may be asked.
func (s Scope) Local() bool { return s&LocalOnly != 0 }

// Public reports whether only public paths exist.
func (s Scope) Public() bool { return s&PublicOnly != 0 }

// Infos answers which narinfo a path has.
type Infos interface {
	Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error)
}

// NARs reads NARs.
type NARs interface {
	// NAR returns the bytes of info's NAR in exactly this form, from byte off of the form on.
	// They are unverified. The body is bound to ctx to its end: a Read that waits returns when
	// ctx ends. The caller closes it.
	NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error)
	// Invalid reports that this source alone sent all bytes of a form and that they were
	// wrong. What the source does about it is done on return: the next question may be for
	// the same NAR.
	Invalid(info *verify.Info, form nix.Form, err error)
}

// LocalStore is this machine's Nix store.
type LocalStore interface {
	Infos
	NARs
	// Public is Info for those on other machines: only paths that a share key signed exist,
	// and any other path is answered in the same time as one that does not.
	Public(ctx context.Context, h nix.StoreHash) (*verify.Info, error)
}

// InfoCache remembers narinfos on disk.
type InfoCache interface {
	Infos
	// Public is Info among those that a share key signed.
	Public(ctx context.Context, h nix.StoreHash) (*verify.Info, error)
	// Put remembers info. It does not block.
	Put(info *verify.Info)
	// Forget drops the narinfo of a path.
	Forget(h nix.StoreHash)
}

// Pace is how fast the upstreams delivered lately, as this machine saw it.
type Pace struct {
	// Latency is the time from a request to its first byte. 0 if unknown.
	Latency time.Duration
	// Rate is what a NAR came at, in bytes a second. 0 if unknown.
	Rate float64
}

// Time returns how long size bytes take at this pace, 0 if it is unknown.
func (p Pace) Time(size int64) time.Duration {
	if p.Rate <= 0 {
		return p.Latency
	}
	return p.Latency + time.Duration(float64(size)/p.Rate*float64(time.Second))
}

// Upstreams is the HTTP caches.
type Upstreams interface {
	Infos
	NARs
	// Update is NAR from byte 0 on, for a reader that shows nothing before all of it is verified: in place
	// of the form, a mirror may send what differs from a NAR of this machine's store, which may
	// be damaged. If delta says that it does, the body is the raw NAR, and what breaks off is continued as usual.
	Update(ctx context.Context, info *verify.Info, form nix.Form) (u *verify.Unverified, delta bool, err error)
	// Down reports whether asking is pointless at the moment.
	Down() bool
	// Saturated reports whether answers are late because the line is full: bytes keep coming.
	Saturated() bool
	// Pace returns how fast they delivered lately.
	Pace() Pace
	// Anonymous returns the same caches without those that have credentials, for questions
	// from other machines.
	Anonymous() Upstreams
}

// ErrFetch is returned by Session.Next when the site agreed that this machine fetches the NAR
// from upstream.
var ErrFetch = errors.New("this machine is to fetch it")

// Peers is the other nodes of the site. Nothing is asked of them about a path that no share
// key signed.
type Peers interface {
	// Info asks the peers whose inventory may have the path. If there are none, it answers in
	// microseconds.
	Infos
	// MayHave reports whether the inventory of a peer may have the path. It asks nobody.
	MayHave(h nix.StoreHash) bool
	// Raw reports whether a peer said lately that it has info's NAR raw, or gets it raw. It asks
	// nobody. Where peers have only an upstream's file, a narinfo of an upstream that names the
	// file lets them pass it on without decoding.
	Raw(info *verify.Info) bool
	// FileSize returns how large an upstream's file of info's NAR is, as peers said lately, 0
	// if none did. It asks nobody.
	FileSize(info *verify.Info) int64
	// Begin starts the transfer of one NAR. It returns nil if there is nobody to ask: no peer
	// is connected, or no share key signed the narinfo. It asks nobody yet. The caller ends
	// the session.
	Begin(ctx context.Context, want Want) Session
	// Search looks for holders beyond the connected peers, until ctx ends, and reports whether
	// it found any, for a session that begins afterwards.
	Search(ctx context.Context, info *verify.Info) bool
}

// Sized is a form of a NAR and its size in bytes.
type Sized struct {
	Form nix.Form
	Size int64
}

// Want is what a session is to get.
type Want struct {
	Info *verify.Info
	// Forms are those that are of use, the preferred one first. A form other than raw must
	// come from a narinfo of one of this machine's own upstreams: what a peer says about
	// files is not trusted.
	Forms []Sized
	// Coordinate agrees with the site who fetches what no peer has. If false, only what
	// peers have is of interest.
	Coordinate bool
	// Whole takes all bytes from one peer: a peer that breaks off is not followed by another.
	Whole bool
	// Delta lets peers send what differs from a NAR that is here. Nothing of it can be shown before
	// all of it is verified: Session.Trusted says so.
	Delta bool
}

// Base is a NAR of this machine's store against which others may code another one.
type Base struct {
	Store nix.StoreHash
	Nar   nix.NarHash
	Size  int64 // bytes
}

// Tree is a NAR that is read at any place. It stays on disk until it is closed.
type Tree interface {
	delta.Tree
	io.Closer
}

// Trees is the NARs of this machine's store as deltas need them.
type Trees interface {
	// Public returns the narinfo of a path that a share key signed.
	Public(ctx context.Context, h nix.StoreHash) (*verify.Info, error)
	// Bases returns paths that a share key signed and that may be versions of info's, the most alike
	// first, at most most. It reads nothing.
	Bases(info *verify.Info, most int) []Base
	// Tree opens the raw NAR of a path.
	Tree(ctx context.Context, info *verify.Info) (Tree, error)
	NARs
}

// Versions is the NARs on this machine that others may get as what differs from one another.
type Versions interface {
	// Version returns the narinfo of a NAR that a share key signed, and what its raw bytes have to be decoded
	// from: None if they are here as they are. Any other NAR is absent, in the same time: which there are
	// is known from memory.
	Version(ctx context.Context, nar nix.NarHash) (info *verify.Info, packed nix.Compression, err error)
	// Tree opens the raw NAR of what Version returned, and decodes it if need be.
	Tree(ctx context.Context, info *verify.Info) (Tree, error)
	// Invalid reports that the NAR of a Tree was wrong.
	Invalid(info *verify.Info, form nix.Form, err error)
}

// Session is the transfer of one NAR from peers to this machine. Next and End are called by
// one goroutine; Progress may be called at the same time by another.
type Session interface {
	// Next says where the bytes from byte off on come from. The form of the first turn is
	// that of all. Its errors:
	//
	//   - absent: no peer has it, and Want.Coordinate is false;
	//   - ErrFetch: the turn's stream is nil, and this machine fetches from upstream;
	//   - unavailable: those who have it are busy, silent or failed.
	//
	// A peer whose stream failed is not returned again.
	Next(ctx context.Context, off int64) (Turn, error)
	// Progress tells those who coordinate how many bytes can be read from here by others, and
	// how many have come.
	Progress(readable, received int64)
	// Trusted reports whether every peer that sent bytes in this session has delivered a
	// whole, correct NAR before, and no bytes came as a delta: its base may be damaged.
	Trusted() bool
	// Peers returns how many peers sent bytes in this session.
	Peers() int
	// Sharers returns how many machines are said to get this NAR at the same time, this one
	// included. If each went upstream, all would share its line.
	Sharers() int
	// FetchAnyway tells those who coordinate that this machine fetches from upstream without
	// being asked to: the peers took too long. It does not wait for anybody.
	FetchAnyway()
	// End ends the session. It does not wait for anybody.
	End(ctx context.Context, o Outcome)
}

// Turn is who supplies the next bytes, until they end or the turn does.
type Turn struct {
	Stream *Stream
	// Over is closed when the site wants another node to supply: ask Next again. Nil: never.
	Over <-chan struct{}
}

// Stream is what one peer sends.
type Stream struct {
	Body io.ReadCloser // unverified; bound to the context of Next
	Form nix.Form
	Size int64  // of the whole form in bytes
	Peer string // ID, for people
}

// Outcome is how a transfer ended.
type Outcome uint8

const (
	// GaveUp: it is not known whether the bytes were right.
	GaveUp Outcome = iota
	// Correct: all bytes are here and match the signed hash.
	Correct
	// Wrong: all bytes came, and they do not match the signed hash. If one peer sent them
	// all it is blamed; several are unverified from now on.
	Wrong
	// Mixed: wrong, but not all bytes came from peers. The peers that took part are
	// unverified from now on.
	Mixed
)

// RefusedError says that a source has the path, but not so that it could be served from here: no
// trusted key signed it, or its file cannot be decoded. It counts as absent: nobody lied, and the
// answer will be the same for a while.
type RefusedError struct {
	Why string // a clause such as "no trusted key signed it"
}

func (e *RefusedError) Error() string { return "refused: " + e.Why }

// Unwrap returns fs.ErrNotExist.
func (e *RefusedError) Unwrap() error { return fs.ErrNotExist }

// Refused returns the reason if err says that a path is there and cannot be served, else nil.
func Refused(err error) *RefusedError {
	var e *RefusedError
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// Absent reports whether err says that there is no such thing.
func Absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// Invalid returns the reason if err says that an answer was wrong, else nil.
func Invalid(err error) *verify.InvalidError {
	var e *verify.InvalidError
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// Event is something that people may want to know of.
type Event struct {
	Kind      EventKind
	Source    Role
	Peer      string // ID, "" if no single peer is concerned
	StorePath string // "" if it is not about one path
	Err       error
}

// EventKind is what happened.
type EventKind uint8

// The kinds of events.
const (
	WrongBytes     EventKind = iota // a source sent a NAR whose hash is wrong
	WrongInfo                       // a source sent a narinfo that is not valid
	Mixture                         // bytes of several sources together were wrong
	EndedEarly                      // a source stopped in the middle; another went on
	ProtocolError                   // a peer broke the protocol
	CacheDown                       // an upstream cache cannot be reached
	CacheFailed                     // the disk of the NAR cache failed
	WrongFile                       // a file of an upstream does not hold the signed NAR
	CacheRecovered                  // an upstream cache can be reached again
)

// Events receives events. It must not block. Nil drops them.
type Events func(Event)

// Send passes e on.
func (f Events) Send(e Event) {
	if f != nil {
		f(e)
	}
}

// ErrWebPage is the answer of a network that lets nobody out before a login: it stands in for a
// cache, which is not there.
var ErrWebPage = errors.New("answers with a web page (a login page?)")

// IsWebPage reports whether the text is a web page, where a narinfo or nix-cache-info was asked for.
func IsWebPage(text []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(text), []byte("<")) }
