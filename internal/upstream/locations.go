package upstream

import (
	"context"
	"slices"
	"strings"
	"time"

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

// goneFor is how long a narinfo is not believed whose NAR was not there. It may have been asked for
// while it was being uploaded.
const goneFor = 30 * time.Second

// place names the narinfo of one cache.
type place struct {
	mirror int
	path   nix.StoreHash
}

// location is where a cache has a NAR: what its narinfo said besides the signed facts.
type location struct {
	nar         nix.NarHash
	url         string
	compression nix.Compression
	file        nix.FileHash // zero if not said
	size        int64        // of the file, 0 if not said
}

func locationOf(info *verify.Info) location {
	h := info.Hints()
	c := nix.Compression(strings.ToLower(strings.TrimSpace(string(h.Compression))))
	return location{info.NarHash(), h.URL, c, h.FileHash, h.FileSize}
}

// fileKey names a file: two caches that have the same one are interchangeable.
type fileKey struct {
	compression nix.Compression
	file        nix.FileHash
	mirror      int // of the only cache that has it, from 1; 0 if others may
}

func (l *location) key(m *mirror) fileKey {
	switch {
	case l.compression == nix.None:
		return fileKey{compression: nix.None}
	case l.file == nix.FileHash{}:
		return fileKey{compression: l.compression, mirror: 1 + m.index}
	}
	return fileKey{compression: l.compression, file: l.file}
}

// located returns where m has info's NAR, if that is known.
func (s *shared) located(m *mirror, info *verify.Info) (location, bool) {
	l, ok := s.found.Get(place{m.index, info.StorePath().Hash()})
	return l, ok && l.nar == info.NarHash()
}

// sent names bytes of one cache: a NAR in a form.
type sent struct {
	mirror int
	nar    nix.NarHash
	file   nix.FileHash // zero for raw
}

func sentBy(m *mirror, info *verify.Info, form nix.Form) sent {
	return sent{m.index, info.NarHash(), form.File}
}

// wasWrong reports whether others are asked for this form of the NAR before m, which has sent
// it, or the raw NAR, wrong.
func (s *shared) wasWrong(m *mirror, info *verify.Info, form nix.Form) bool {
	return s.wrong.Has(sentBy(m, info, nix.Raw)) || s.wrong.Has(sentBy(m, info, form))
}

// untilAsked returns how long it takes until m may be asked again for what it has just sent wrong.
func (s *shared) untilAsked(m *mirror, info *verify.Info, form nix.Form) time.Duration {
	until, ok := s.wrong.Until(sentBy(m, info, form))
	if !ok {
		return 0
	}
	return max(time.Until(until)-avoidedFor+s.timeouts.wrong, 0)
}

// awaitAsked waits until m may be asked for the raw NAR again. It reports false if ctx ends first.
func (s *shared) awaitAsked(ctx context.Context, m *mirror, info *verify.Info) bool {
	timer := time.NewTimer(s.untilAsked(m, info, nix.Raw))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Invalid reports that all bytes of this form of info's NAR came from here and were wrong: the
// caches that sent them are asked for it again only if no other one has it, and then for a
// narinfo first, which may name another file; all, if nobody is known to have sent them. After a
// wrong file they are still asked for raw: FileHash is not signed, and the NAR in the file may
// be right. After a wrong delta they are asked for the same without one.
func (u *Upstreams) Invalid(info *verify.Info, form nix.Form, _ error) {
	known := slices.ContainsFunc(u.all, func(m *mirror) bool { return u.senders.Has(sentBy(m, info, form)) })
	for _, m := range u.all {
		if k := sentBy(m, info, form); !known || u.senders.Has(k) {
			u.senders.Remove(k)
			if form.IsRaw() && u.deltas.wasWrong(m, k) {
				continue
			}
			u.wrong.Add(k, avoidedFor)
			u.found.Remove(place{m.index, info.StorePath().Hash()})
		}
	}
}
