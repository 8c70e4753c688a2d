package mirror

import (
	"context"
	"errors"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Status is how following a list goes.
type Status struct {
	List    string
	Checked time.Time // zero before the first time
	Error   string    // why it could not be read the last time, or a path not be fetched
	// Of the newest generation:
	MissingPaths int
	MissingBytes int64
	LeftOutPaths int // for which the cache has no room
	LeftOutBytes int64
	Absent       int          // paths that no source has
	Generations  []Generation // the newest first
}

// Generation is a list as it was at one time.
type Generation struct {
	Found    time.Time
	From     string // where redirects led
	Paths    int    // with those that they refer to
	Bytes    int64  // of those that are known
	Kept     int    // paths that the cache evicts last
	Complete bool   // all that can be had and has room was here
}

// Status returns how it goes with each list.
func (f *Follower) Status() []Status {
	var all []Status
	for _, t := range f.tracks {
		t.mu.Lock()
		p := t.progress
		t.mu.Unlock()
		s := Status{
			List: t.list.Name, Checked: p.checked, MissingPaths: p.missing.paths, MissingBytes: p.missing.bytes,
			LeftOutPaths: p.leftOut.paths, LeftOutBytes: p.leftOut.bytes, Absent: p.absent,
		}
		if err := errors.Join(p.err, p.failed); err != nil {
			s.Error = err.Error()
		}
		f.mu.RLock()
		for _, g := range t.generations {
			s.Generations = append(s.Generations, Generation{
				Found: g.Found, From: g.From, Paths: len(g.paths), Bytes: g.bytes, Kept: g.kept, Complete: g.Complete,
			})
		}
		f.mu.RUnlock()
		all = append(all, s)
	}
	return all
}

// Plan is what following a list would mean.
type Plan struct {
	List         string
	From         string
	Paths        int // with those that they refer to
	Bytes        int64
	Here         int // paths that are on this machine
	MissingPaths int
	MissingBytes int64
	Absent       int // paths that no source has
	Failed       int // paths about which a source could not say
	Room         int64
}

// Plan reads the lists and asks what they need. It changes nothing and fetches no NAR.
func (f *Follower) Plan(ctx context.Context) ([]Plan, error) {
	var all []Plan
	for _, t := range f.tracks {
		paths, from, _, err := t.read(ctx, "")
		if err != nil {
			return all, &ListError{t.list.Name, err}
		}
		g := newGeneration(t.list.Name, 0, from, paths)
		scratch := &track{f: f, list: t.list}
		p := Plan{List: t.list.Name, From: from, Room: f.cfg.Room - f.cfg.Room/spare}
		p.Absent, _ = scratch.explore(ctx, g)
		if err := ctx.Err(); err != nil {
			return all, err
		}
		p.Paths = len(g.paths)
		seen := map[nix.NarHash]bool{}
		for _, e := range g.paths {
			switch {
			case !e.known():
				p.Failed++
			case seen[e.nar], f.cfg.Have(e.nar):
				p.Here++
				p.Bytes += e.size
			default:
				seen[e.nar] = true
				p.MissingPaths++
				p.MissingBytes += e.size
				p.Bytes += e.size
			}
		}
		p.Failed -= p.Absent
		all = append(all, p)
	}
	return all, nil
}

// ListError says which list could not be read.
type ListError struct {
	List string
	Err  error
}

func (e *ListError) Error() string { return e.List + ": " + e.Err.Error() }

func (e *ListError) Unwrap() error { return e.Err }
