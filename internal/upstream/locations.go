package upstream

import (
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Sizes of what is remembered. A location takes some 300 bytes; a closure of a few thousand
// paths is asked for at once, and then its NARs.
const (
	maxLocations = 32 << 10
	maxSenders   = 8 << 10
	maxURL       = 1 << 10 // bytes of a URL line that is remembered
)

// location is where a cache has a NAR: what its narinfo said besides the signed facts.
type location struct {
	url         string
	compression nix.Compression
	file        nix.FileHash // zero if not said
	size        int64        // of the file, 0 if not said
}

func locationOf(info *verify.Info) location {
	h := info.Hints()
	return location{h.URL, h.Compression, h.FileHash, h.FileSize}
}

// key identifies the file at l: two caches that name the same one are interchangeable.
func (l *location) key(m *mirror) any {
	switch {
	case l.compression == nix.None:
		return nix.None
	case l.file != (nix.FileHash{}):
		return l.file
	}
	return m.index
}

// locations knows which cache has which NAR where. It is safe for concurrent use.
type locations struct {
	mu    sync.Mutex // for changes of entries
	paths *lru.Cache[nix.StoreHash, *entry]
}

// entry is what is known about one store path. It is not changed once it is stored.
type entry struct {
	nar nix.NarHash
	at  []mirrorLocation
}

type mirrorLocation struct {
	mirror int
	location
}

func newLocations() *locations {
	paths, _ := lru.New[nix.StoreHash, *entry](maxLocations) // fails for sizes below 1 only
	return &locations{paths: paths}
}

// add notes that info came from m.
func (s *locations) add(m *mirror, info *verify.Info) {
	l := mirrorLocation{m.index, locationOf(info)}
	if len(l.url) > maxURL {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &entry{nar: info.NarHash()}
	if old, ok := s.paths.Get(info.StorePath().Hash()); ok && old.nar == e.nar {
		e.at = old.without(m)
	}
	e.at = append(e.at, l)
	s.paths.Add(info.StorePath().Hash(), e)
}

// forget drops what was known of m's location.
func (s *locations) forget(m *mirror, h nix.StoreHash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.paths.Get(h); ok {
		s.paths.Add(h, &entry{old.nar, old.without(m)})
	}
}

func (e *entry) without(m *mirror) []mirrorLocation {
	return slices.DeleteFunc(slices.Clone(e.at), func(l mirrorLocation) bool { return l.mirror == m.index })
}

// get returns where m has info's NAR, if that is known.
func (s *locations) get(m *mirror, info *verify.Info) (location, bool) {
	if e, ok := s.paths.Get(info.StorePath().Hash()); ok && e.nar == info.NarHash() {
		for _, l := range e.at {
			if l.mirror == m.index {
				return l.location, true
			}
		}
	}
	return location{}, false
}

// sent names bytes of one cache: a NAR in a form.
type sent struct {
	mirror int
	nar    nix.NarHash
	file   nix.FileHash // zero for raw
}

// blamed knows which cache sent a NAR lately, and which sent it wrong.
type blamed struct{ senders, wrong *backoff.Set[sent] }

func newBlamed() *blamed {
	return &blamed{backoff.NewSet[sent](maxSenders), backoff.NewSet[sent](maxSenders)}
}

// sending notes that m sends bytes of a NAR.
func (b *blamed) sending(m *mirror, info *verify.Info, form nix.Form) {
	b.senders.Add(sent{m.index, info.NarHash(), form.File}, 6*time.Hour)
}

// blame marks those who sent a NAR in this form for d; all, if nobody is known to have.
func (b *blamed) blame(all []*mirror, info *verify.Info, form nix.Form, d time.Duration) {
	var who []sent
	for _, m := range all {
		if k := (sent{m.index, info.NarHash(), form.File}); b.senders.Has(k) {
			who = append(who, k)
		}
	}
	for _, m := range all {
		if k := (sent{m.index, info.NarHash(), form.File}); len(who) == 0 || slices.Contains(who, k) {
			b.senders.Remove(k)
			b.wrong.Add(k, d)
		}
	}
}

// has reports whether m has sent this form of the NAR, or the raw NAR, wrong.
func (b *blamed) has(m *mirror, info *verify.Info, form nix.Form) bool {
	return b.wrong.Has(sent{mirror: m.index, nar: info.NarHash()}) || b.wrong.Has(sent{m.index, info.NarHash(), form.File})
}
