package resolve

import (
	"math"
	"sync/atomic"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// Answer is a narinfo and the form in which its NAR is offered.
type Answer struct {
	Info *verify.Info
	Form nix.Form
	text []byte
}

// Text returns the narinfo as it is offered. The caller must not change it.
func (a *Answer) Text() []byte { return a.text }

// cached is an answer in memory.
type cached struct {
	Answer
	role   source.Role
	public bool        // others may see it
	ahead  atomic.Bool // its references were looked up
}

// fromUpstream reports whether an upstream of this machine gave the narinfo, so that its file
// form may be used.
func (k *cached) fromUpstream() bool { return k.role == source.Upstream || k.role == source.Disk }

// memory holds answers, the least used of which go when they take too many bytes. Changes are
// made under flights.mu; get and has need no lock.
type memory struct {
	most  int64
	bytes int64
	c     *lru.Cache[nix.StoreHash, *cached]
}

func newMemory(most int64) *memory {
	m := &memory{most: most}
	m.c, _ = lru.NewWithEvict(math.MaxInt32, func(_ nix.StoreHash, k *cached) { m.bytes -= k.cost() }) // the size is valid
	return m
}

// overhead is what an entry takes beside its narinfo.
const overhead = 300

func (k *cached) cost() int64 { return int64(k.Info.Size() + len(k.text) + overhead) }

func (m *memory) get(h nix.StoreHash) (*cached, bool) { return m.c.Get(h) }

func (m *memory) has(h nix.StoreHash) bool { return m.c.Contains(h) }

func (m *memory) add(h nix.StoreHash, k *cached) {
	m.c.Remove(h)
	m.c.Add(h, k)
	for m.bytes += k.cost(); m.bytes > m.most; {
		m.c.RemoveOldest()
	}
}

func (m *memory) remove(h nix.StoreHash) { m.c.Remove(h) }
