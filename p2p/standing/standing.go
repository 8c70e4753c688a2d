// Package standing remembers which peers lied, for a day and over restarts, and which had a
// part in wrong bytes of one NAR, for an hour. Slowness and absence are no guilt and are not
// known here. It judges nobody itself.
package standing

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/disk"
	"github.com/nixp2p/nixp2p/internal/nix"
)

const (
	// LiarFor is how long a peer that lied is not asked.
	LiarFor = 24 * time.Hour
	// AvoidFor is how long the contributors to wrong bytes are not asked for that NAR: one
	// of them is innocent.
	AvoidFor = time.Hour

	// maxLiars and maxAvoided bound what identities made for the purpose can fill. The
	// oldest is forgotten.
	maxLiars   = 4096
	maxAvoided = 16 << 10
	// maxReason keeps the file and the status page readable.
	maxReason = 300
	maxFile   = 4 << 20
)

// Liar is one entry of the memory.
type Liar struct {
	Peer   string    `json:"peer"`
	Reason string    `json:"reason"`
	Until  time.Time `json:"until"`
}

// Book is the memory. It is safe for concurrent use.
type Book struct {
	path string

	mu      sync.Mutex
	liars   map[string]Liar
	avoided map[avoidKey]time.Time
}

type avoidKey struct {
	peer string
	nar  nix.NarHash
}

// Open reads the memory from the file at path; "" keeps it in memory only. A file that
// cannot be read is an error beside a Book that works: to have forgotten is no reason not to
// start.
func Open(path string) (*Book, error) {
	b := &Book{path: path, liars: make(map[string]Liar), avoided: make(map[avoidKey]time.Time)}
	if path == "" {
		return b, nil
	}
	list, err := read(path)
	now := time.Now()
	for _, l := range list {
		// A clock that was wrong must not keep somebody out for years.
		if l.Until.After(now) && l.Until.Before(now.Add(2*LiarFor)) && len(b.liars) < maxLiars {
			b.liars[l.Peer] = l
		}
	}
	return b, err
}

func read(path string) (list []Liar, err error) {
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("standing: %w", err)
	case len(text) > maxFile:
		return nil, fmt.Errorf("standing: %s: too large", path)
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("standing: %s: %w", path, err)
	}
	return list, nil
}

// Convict remembers that peer lied and why. An error says that it will be forgotten when
// the program ends.
func (b *Book) Convict(peer, reason string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if _, ok := b.liars[peer]; !ok && len(b.liars) >= maxLiars {
		// Some at a time, so that a crowd of fresh identities does not cost a sort each.
		for _, l := range b.sorted()[:maxLiars/64] {
			delete(b.liars, l.Peer)
		}
	}
	b.liars[peer] = Liar{peer, clip(reason), now.Add(LiarFor).Round(time.Second)}
	if b.path == "" {
		return nil
	}
	return b.write()
}

// write replaces the file as a whole.
func (b *Book) write() error {
	text, err := json.MarshalIndent(b.sorted(), "", " ")
	if err != nil {
		return fmt.Errorf("standing: %w", err)
	}
	if err := disk.Replace(b.path, text); err != nil {
		return fmt.Errorf("standing: %w", err)
	}
	return nil
}

// sorted returns the liars, the first to be forgiven first.
func (b *Book) sorted() []Liar {
	list := make([]Liar, 0, len(b.liars))
	for _, l := range b.liars {
		list = append(list, l)
	}
	slices.SortFunc(list, func(x, y Liar) int { return x.Until.Compare(y.Until) })
	return list
}

// Lied tells whether peer is remembered as a liar, and how.
func (b *Book) Lied(peer string) (Liar, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, ok := b.liars[peer]
	if ok && !l.Until.After(time.Now()) {
		delete(b.liars, peer)
		return Liar{}, false
	}
	return l, ok
}

// Liars returns all who are remembered, the first to be forgiven first.
func (b *Book) Liars() []Liar {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	return slices.DeleteFunc(b.sorted(), func(l Liar) bool { return !l.Until.After(now) })
}

// Avoid remembers that peer had a part in wrong bytes of nar.
func (b *Book) Avoid(peer string, nar nix.NarHash) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for k, until := range b.avoided {
		if len(b.avoided) < maxAvoided {
			break
		}
		if !until.After(now) || rand.IntN(64) == 0 {
			delete(b.avoided, k)
		}
	}
	b.avoided[avoidKey{peer, nar}] = now.Add(AvoidFor)
}

// Clear forgets that peer had a part in wrong bytes of nar: its part was right.
func (b *Book) Clear(peer string, nar nix.NarHash) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.avoided, avoidKey{peer, nar})
}

// Avoided tells whether peer is not to be asked for nar: it lied, or had a part in wrong
// bytes of it.
func (b *Book) Avoided(peer string, nar nix.NarHash) bool {
	if _, liar := b.Lied(peer); liar {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.avoided[avoidKey{peer, nar}].After(time.Now())
}

func clip(s string) string {
	if len(s) > maxReason {
		return s[:maxReason] + "…"
	}
	return s
}
