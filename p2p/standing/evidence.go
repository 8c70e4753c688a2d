package standing

import (
	"hash/maphash"
	"slices"
	"sync"
	"time"
)

// Given is what one peer gave of a stream.
type Given struct {
	Peer     string
	From, To int64  // its bytes: From up to, without, To
	Sum      uint64 // of them, by Evidence.Hash
	// Relayed: it was getting them itself and ended before the end, so that it had not proven them.
	Relayed bool
}

// Evidence keeps what each peer gave of streams that turned out wrong, until the right bytes
// pass by and show who it was. The sums are keyed with a secret of the process: nobody can make
// wrong bytes of the right sum, and who gave right ones is never convicted. The zero value is
// empty; it is safe for concurrent use.
type Evidence struct {
	once sync.Once
	seed maphash.Seed

	mu   sync.Mutex
	kept map[Stream]*file
}

type file struct {
	given []Given
	at    time.Time
}

// maxFiles streams are kept, and of each maxGiven pieces, for as long as those who gave them
// are avoided: about 1 MB at the most.
const (
	maxFiles = 256
	maxGiven = 64
)

// Hash returns an empty hash for the bytes of one Given.
func (e *Evidence) Hash() (h maphash.Hash) {
	e.once.Do(func() { e.seed = maphash.MakeSeed() })
	h.SetSeed(e.seed)
	return h
}

// Keep notes who gave what of a stream that was wrong.
func (e *Evidence) Keep(k Stream, given []Given) {
	if len(given) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.kept == nil {
		e.kept = make(map[Stream]*file)
	}
	f := e.kept[k]
	if f == nil {
		e.makeRoom()
		f = &file{}
		e.kept[k] = f
	}
	f.at = time.Now()
	for _, g := range given {
		if len(f.given) < maxGiven && !slices.Contains(f.given, g) {
			f.given = append(f.given, g)
		}
	}
}

// makeRoom throws away what is too old, and the oldest if there are too many.
func (e *Evidence) makeRoom() {
	var oldest Stream
	at := time.Now()
	for k, f := range e.kept {
		if time.Since(f.at) > AvoidFor {
			delete(e.kept, k)
		} else if !f.at.After(at) {
			oldest, at = k, f.at
		}
	}
	if len(e.kept) >= maxFiles {
		delete(e.kept, oldest)
	}
}

// Compare returns what the right bytes of a stream are to be written to, nil when nothing of
// it is kept.
func (e *Evidence) Compare(k Stream) *Comparison {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.kept[k]
	if f == nil || time.Since(f.at) > AvoidFor {
		return nil
	}
	c := &Comparison{e: e, k: k}
	for _, g := range f.given {
		c.parts = append(c.parts, comparedPart{Given: g, hash: e.Hash()})
	}
	return c
}

// Comparison takes the bytes of a stream from its beginning on. It is for one goroutine.
type Comparison struct {
	e     *Evidence
	k     Stream
	at    int64
	parts []comparedPart
}

type comparedPart struct {
	Given
	hash maphash.Hash
}

// Write is part of io.Writer. It never fails.
func (c *Comparison) Write(b []byte) (int, error) {
	for i := range c.parts {
		p := &c.parts[i]
		from, to := max(p.From-c.at, 0), min(p.To-c.at, int64(len(b)))
		if from < to {
			_, _ = p.hash.Write(b[from:to])
		}
	}
	c.at += int64(len(b))
	return len(b), nil
}

// Verdict says who gave other bytes and who did not, for a stream whose bytes were written and
// proven as a whole, and closes the file on it. Misled are those who only passed wrong ones on.
func (c *Comparison) Verdict() (guilty, misled, innocent []string) {
	for i := range c.parts {
		p := &c.parts[i]
		// Who gave more than there is gave something else.
		wrong := p.To > c.at || p.hash.Sum64() != p.Sum
		switch {
		case wrong && !p.Relayed && !slices.Contains(guilty, p.Peer):
			guilty = append(guilty, p.Peer)
		case wrong && p.Relayed && !slices.Contains(misled, p.Peer):
			misled = append(misled, p.Peer)
		}
	}
	misled = slices.DeleteFunc(misled, func(p string) bool { return slices.Contains(guilty, p) })
	for i := range c.parts {
		p := c.parts[i].Peer
		if !slices.Contains(guilty, p) && !slices.Contains(misled, p) && !slices.Contains(innocent, p) {
			innocent = append(innocent, p)
		}
	}
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	delete(c.e.kept, c.k)
	return guilty, misled, innocent
}
