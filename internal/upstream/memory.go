package upstream

import (
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Sizes of the memory. A place takes some 200 bytes; a closure of a few thousand paths is
// asked for at once, and then its NARs.
const (
	maxPlaces   = 32 << 10
	maxVerdicts = 4 << 10
)

// place is where a cache has a NAR: what its narinfo said beside the signed facts.
type place struct {
	url         string // "" for the usual name of the file
	compression nix.Compression
	file        nix.FileHash // zero when not said
	size        int64        // of the file, 0 when not said
}

// text returns the URL line.
func (p *place) text() string {
	if p.url == "" {
		return usualName(p.compression, p.file)
	}
	return p.url
}

// memory knows which cache has which NAR where, who sent what, and what was wrong. It is
// safe for concurrent use.
type memory struct {
	mu      sync.Mutex // for changes of entries
	places  *lru.Cache[nix.StoreHash, *entry]
	senders *lru.Cache[sent, []bool]
	wrong   *lru.Cache[sent, []time.Time]
	mirrors int
}

// entry is what is known about one store path. It is not changed once it is stored.
type entry struct {
	nar    nix.NarHash
	places []placeAt
}

type placeAt struct {
	mirror int
	place
}

// sent names bytes that came from caches: a NAR in a form.
type sent struct {
	nar  nix.NarHash
	file nix.FileHash // zero for raw
}

func newMemory(mirrors int) *memory {
	m := &memory{mirrors: mirrors}
	// New fails for sizes below 1 only.
	m.places, _ = lru.New[nix.StoreHash, *entry](maxPlaces)
	m.senders, _ = lru.New[sent, []bool](maxVerdicts)
	m.wrong, _ = lru.New[sent, []time.Time](maxVerdicts)
	return m
}

// remember keeps where a cache has the NAR of info, which came from it.
func (s *memory) remember(m *mirror, info *verify.Info) {
	hints := info.Hints()
	p := placeAt{m.index, place{hints.URL, hints.Compression, hints.FileHash, hints.FileSize}}
	if hints.FileHash != (nix.FileHash{}) && hints.URL == usualName(hints.Compression, hints.FileHash) {
		p.url = ""
	}
	s.change(info.StorePath().Hash(), func(old *entry) *entry {
		if old == nil || old.nar != info.NarHash() {
			return &entry{info.NarHash(), []placeAt{p}}
		}
		kept := slices.DeleteFunc(slices.Clone(old.places), func(q placeAt) bool { return q.mirror == m.index })
		return &entry{old.nar, append(kept, p)}
	})
}

// forget drops what was known of a cache's place.
func (s *memory) forget(m *mirror, h nix.StoreHash) {
	s.change(h, func(old *entry) *entry {
		if old == nil {
			return nil
		}
		kept := slices.DeleteFunc(slices.Clone(old.places), func(q placeAt) bool { return q.mirror == m.index })
		return &entry{old.nar, kept}
	})
}

func (s *memory) change(h nix.StoreHash, edit func(*entry) *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, _ := s.places.Get(h)
	if e := edit(old); e != nil {
		s.places.Add(h, e)
	}
}

// place returns where a cache has info's NAR, if that is known.
func (s *memory) place(m *mirror, info *verify.Info) (place, bool) {
	e, ok := s.places.Get(info.StorePath().Hash())
	if !ok || e.nar != info.NarHash() {
		return place{}, false
	}
	for _, p := range e.places {
		if p.mirror == m.index {
			return p.place, true
		}
	}
	return place{}, false
}

// knows tells whether any cache is known to have info's NAR.
func (s *memory) knows(info *verify.Info) bool {
	e, ok := s.places.Get(info.StorePath().Hash())
	return ok && e.nar == info.NarHash() && len(e.places) > 0
}

// sending notes that a cache has sent bytes of a NAR.
func (s *memory) sending(m *mirror, info *verify.Info, form nix.Form) {
	key := sent{info.NarHash(), form.File}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.senders.Get(key)
	if ok && old[m.index] {
		return
	}
	who := make([]bool, s.mirrors)
	copy(who, old)
	who[m.index] = true
	s.senders.Add(key, who)
}

// convict marks those who sent a NAR in this form until a time; all, when nobody knows.
func (s *memory) convict(info *verify.Info, form nix.Form, until time.Time) {
	key := sent{info.NarHash(), form.File}
	s.mu.Lock()
	defer s.mu.Unlock()
	who, known := s.senders.Get(key)
	s.senders.Remove(key)
	old, _ := s.wrong.Get(key)
	marks := make([]time.Time, s.mirrors)
	copy(marks, old)
	for i := range marks {
		if !known || who[i] {
			marks[i] = until
		}
	}
	s.wrong.Add(key, marks)
}

// convicted tells whether a cache has sent this form of the NAR, or the NAR at all, wrong.
func (s *memory) convicted(m *mirror, info *verify.Info, form nix.Form) bool {
	now := time.Now()
	for _, key := range [...]sent{{nar: info.NarHash()}, {info.NarHash(), form.File}} {
		if marks, ok := s.wrong.Get(key); ok && now.Before(marks[m.index]) {
			return true
		}
	}
	return false
}
