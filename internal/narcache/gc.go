package narcache

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Report is what a clean-up found and did, for people and as JSON.
type Report struct {
	BytesBefore int64  `json:"bytes_before"` // as Usage counts
	BytesAfter  int64  `json:"bytes_after"`
	Removed     []Item `json:"removed"` // in the order in which they went
	Kept        []Item `json:"kept"`    // what would go next at the front
}

// Item is a NAR that is here as a whole.
type Item struct {
	NarHash  string    `json:"nar_hash"`            // "sha256:…"
	Form     string    `json:"form"`                // "raw", "xz", "zstd" or "delta"
	FileHash string    `json:"file_hash,omitempty"` // "sha256:…", of xz and zstd
	Base     string    `json:"base,omitempty"`      // NarHash of what a delta is coded against
	Size     int64     `json:"size"`                // bytes
	LastUse  time.Time `json:"last_use"`            // to about ten minutes, over a restart
	// Name is that of a package with this NAR. The cache does not know it: who has narinfos fills
	// it in.
	Name string `json:"name,omitempty"`
	Kept bool   `json:"kept"` // a followed list has it: it is evicted last
}

func (e *entry) item(kept bool) Item {
	i := Item{NarHash: e.nar.String(), Form: nix.Raw.String(), Size: e.size, LastUse: time.Unix(e.used, 0).UTC()}
	i.Kept = kept
	switch {
	case e.packed():
		i.Form, i.Base = string(packed), e.baseNar().String()
	case !e.form.IsRaw():
		i.Form, i.FileHash = string(e.form.Compression), e.form.File.String()
	}
	return i
}

// Entries returns what is here, what would be evicted first at the front.
func (c *Cache) Entries() []Item {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := []Item{}
	for e := range c.state.policy.all() {
		all = append(all, e.item(c.state.policy.keeps(e)))
	}
	return all
}

// Files returns how many files a cache has as a whole.
func Files(c *Cache) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &c.state.policy
	return p.recent.Len() + p.frequent.Len() + p.kept.Len()
}

// KeptChanged says that Config.Kept answers differently than before.
func (c *Cache) KeptChanged() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.policy.sort()
}

// usedLately is how long ago a NAR was read by others, so that it is not collected.
const usedLately = 7 * 24 * time.Hour

// Collect removes NARs that somebody kept and keeps no more, except what was read more than once
// and lately. It returns how many files went.
func (c *Cache) Collect(nars []nix.NarHash) (removed int) {
	before := time.Now().Add(-usedLately).Unix()
	goes := func(e *entry) bool {
		return e.refs == 0 && !c.state.policy.keeps(e) && (e.hits < frequentHits || e.used < before) && len(e.members) == 0
	}
	for range 2 { // deltas, and then what they were made of
		var gone []*entry
		c.mu.Lock()
		for _, nar := range nars {
			for e := c.state.index[nar]; e != nil; e = e.sibling {
				if goes(e) {
					gone = append(gone, e)
				}
			}
		}
		c.mu.Unlock()
		for _, e := range gone {
			if c.dropIf(e, goes) {
				removed++
			}
		}
	}
	return removed
}

// Plan says what GC would do, and does nothing.
func (c *Cache) Plan(max int64) Report {
	r := Report{BytesBefore: c.Usage(), Removed: []Item{}, Kept: c.Entries()}
	r.BytesAfter = r.BytesBefore
	for len(r.Kept) > 0 && r.BytesAfter > max {
		r.Removed = append(r.Removed, r.Kept[0])
		r.BytesAfter -= cost(r.Kept[0].Size)
		r.Kept = r.Kept[1:]
	}
	return r
}

// GC evicts until at most max bytes are used and reports; a negative max only lists.
func (c *Cache) GC(max int64) Report {
	r := Report{BytesBefore: c.Usage(), Removed: []Item{}}
	if max >= 0 {
		r.Removed = c.trim(max)
	}
	r.Kept, r.BytesAfter = c.Entries(), c.Usage()
	return r
}

// GC is Cache.GC for a directory that no daemon uses. The error wraps ErrLocked when one does:
// then it is the one to ask; and fs.ErrNotExist when there is no directory.
func GC(dir string, max int64, log *slog.Logger) (Report, error) {
	if st, err := os.Stat(dir); err != nil {
		return Report{}, fmt.Errorf("narcache: %w", err)
	} else if !st.IsDir() {
		return Report{}, fmt.Errorf("narcache: %s: not a directory: %w", dir, fs.ErrNotExist)
	}
	c, err := Open(Config{Dir: dir, Size: math.MaxInt64, Log: log})
	if err != nil {
		return Report{}, errors.Join(err, c.Close())
	}
	r := c.GC(max)
	return r, c.Close()
}
