package transfer

import (
	"net/netip"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// savings counts what did not cross the uplink: the size of the file that an upstream would have
// sent to each client for each NAR, once. A client that gets a NAR again saves nothing: it had
// it. Bytes of an upstream that nobody had asked for save nothing to the first who gets them.
type savings struct {
	mu    sync.Mutex
	given *lru.Cache[givenKey, float64] // how much of a NAR a client was given, 0 to 1
	nars  *lru.Cache[nix.NarHash, bool] // that came since the start; true: prefetched from upstream
	// What narinfos of upstreams said: the ratio is the estimate for the others.
	files, raw int64
}

// givenKey is a NAR and a client on another machine; the zero address is this machine.
type givenKey struct {
	nar    nix.NarHash
	client netip.Addr
}

// savingsKept is how many NARs are remembered: several closures of a system.
const savingsKept = 1 << 14

func newSavings() *savings {
	given, _ := lru.New[givenKey, float64](savingsKept) // fails for sizes below 1 alone
	nars, _ := lru.New[nix.NarHash, bool](savingsKept)
	return &savings{given: given, nars: nars}
}

// prefetching notes that a NAR is fetched that no client asked for. It returns what is called at
// the end, with the source that gave the last byte: only what crossed the uplink for nothing
// counts against what is saved.
func (s *savings) prefetching(nar nix.NarHash) func(source.Role) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nars.Add(nar, true)
	return func(r source.Role) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if ahead, _ := s.nars.Get(nar); ahead && r != source.Upstream {
			s.nars.Add(nar, false)
		}
	}
}

// give books a response: parts of the NAR, 0 to 1, that came from an upstream and from elsewhere.
// kept says that it was read from the cache's disk. It returns which part was saved.
func (s *savings) give(key givenKey, upstream, elsewhere float64, kept bool) (saved float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, _ := s.given.Get(key)
	s.given.Add(key, min(before+upstream+elsewhere, 1))
	ahead, came := s.nars.Get(key.nar)
	s.nars.Add(key.nar, false)
	if ahead || kept && !came && key.client == (netip.Addr{}) {
		// What was in the cache at the start, this machine has fetched before.
		return 0
	}
	return min(elsewhere, max(1-before-upstream, 0))
}

// fileSize returns how many bytes an upstream would have sent for a NAR, and whether that is
// known: an own upstream said so. Else it is what a peer says, or as large as usual.
func (s *savings) fileSize(info *verify.Info, peerSays func() int64) (size int64, known bool) {
	h, raw := info.Hints(), info.NarSize()
	if h.FileSize == 0 && h.Compression == nix.None && h.URL != "" {
		h.FileSize = raw
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.FileSize > 0 && h.FileSize <= raw+raw/8+4096 { // more is nonsense: no signature covers it
		s.files, s.raw = s.files+h.FileSize, s.raw+raw
		return h.FileSize, true
	}
	if size = peerSays(); size > 0 && size <= raw {
		return size, false
	}
	if s.raw > 0 {
		return int64(float64(raw) * min(float64(s.files)/float64(s.raw), 1)), false
	}
	return raw * usualFile / 100, false
}

// usualFile is the size of an upstream's file in per cent of its NAR, where nothing is known: the
// closures of NixOS that were measured have 27 to 34, as xz.
const usualFile = 30
