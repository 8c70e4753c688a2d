// Package reputation rates how far each peer is believed: a peer that gave wrong data alone is
// blamed and not asked for a day, over restarts; a peer that delivered a whole, correct NAR is
// trusted until it takes part in a wrong one; all others are unverified. Slowness and absence
// do not count here. It decides nothing itself.
package reputation

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/backoff"
)

const (
	// BlameFor is how long a peer that gave wrong data is not asked.
	BlameFor = 24 * time.Hour
	// trustFor is how long a correct NAR counts.
	trustFor = 7 * 24 * time.Hour

	// maxBlamed and maxTrusted bound what identities made for the purpose can fill: some
	// 2 MB. The oldest is forgotten.
	maxBlamed  = 4096
	maxTrusted = 4096
	// maxReason keeps the database and the status page readable.
	maxReason = 300
)

// Blamed is a peer that is not asked until a time. It is an alias of a plain struct, so that
// what keeps it on disk need not import this package.
type Blamed = struct {
	Peer   string
	Reason string
	Until  time.Time
}

// Saved keeps the blamed peers over restarts. Save must not block.
type Saved interface {
	Load() []Blamed
	Save(list []Blamed)
}

// Book is what is known of all peers, by ID as text. It is safe for concurrent use.
type Book struct {
	saved   Saved // nil: in memory only
	trusted *backoff.Set[string]

	mu     sync.Mutex
	blamed map[string]Blamed
}

// New returns a Book with the peers that saved has. If saved is nil, nothing outlives the
// Book.
func New(saved Saved) *Book {
	b := &Book{saved: saved, trusted: backoff.NewSet[string](maxTrusted), blamed: make(map[string]Blamed)}
	if saved == nil {
		return b
	}
	now := time.Now()
	for _, x := range saved.Load() {
		// A clock that was wrong must not keep a peer out for years.
		if x.Until.After(now) && x.Until.Before(now.Add(2*BlameFor)) && len(b.blamed) < maxBlamed {
			b.blamed[x.Peer] = x
		}
	}
	return b
}

// Blame has a peer not asked for d, and says why. It is not trusted any more.
func (b *Book) Blame(peer, reason string, d time.Duration) {
	b.trusted.Remove(peer)
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
	}
	list := b.blame(Blamed{Peer: peer, Reason: reason, Until: time.Now().Add(d).Round(time.Second)})
	if b.saved != nil {
		b.saved.Save(list)
	}
}

// blame puts x in and returns what is to be saved.
func (b *Book) blame(x Blamed) []Blamed {
	b.mu.Lock()
	defer b.mu.Unlock()
	old, ok := b.blamed[x.Peer]
	switch {
	case ok && old.Until.After(x.Until):
		x.Until = old.Until
	case !ok && len(b.blamed) >= maxBlamed:
		// Some at a time, so that a crowd of fresh identities does not cost a sort each.
		for _, l := range b.sorted()[:maxBlamed/64] {
			delete(b.blamed, l.Peer)
		}
	}
	b.blamed[x.Peer] = x
	if b.saved == nil {
		return nil
	}
	return b.sorted()
}

// sorted returns the blamed peers, the first to be asked again first. The caller holds mu.
func (b *Book) sorted() []Blamed {
	now := time.Now()
	list := make([]Blamed, 0, len(b.blamed))
	for _, x := range b.blamed {
		if x.Until.After(now) {
			list = append(list, x)
		}
	}
	slices.SortFunc(list, func(x, y Blamed) int { return x.Until.Compare(y.Until) })
	return list
}

// Blamed reports whether a peer is blamed, and why.
func (b *Book) Blamed(peer string) (reason string, blamed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x, ok := b.blamed[peer]
	if ok && !x.Until.After(time.Now()) {
		delete(b.blamed, peer)
		return "", false
	}
	return x.Reason, ok
}

// All returns all blamed peers, the first to be asked again first.
func (b *Book) All() []Blamed {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sorted()
}

// Trust notes that a peer delivered a whole, correct NAR.
func (b *Book) Trust(peer string) {
	if _, blamed := b.Blamed(peer); !blamed {
		b.trusted.Add(peer, trustFor)
	}
}

// Distrust makes a peer unverified: it took part in a wrong NAR with others.
func (b *Book) Distrust(peer string) { b.trusted.Remove(peer) }

// Trusted reports whether a peer has delivered a whole, correct NAR and no wrong one since.
func (b *Book) Trusted(peer string) bool { return b.trusted.Has(peer) }
