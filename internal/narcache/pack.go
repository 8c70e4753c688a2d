package narcache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

var (
	// ErrPoor says that a NAR takes about as much room as a delta.
	ErrPoor = errors.New("a delta saves too little")

	errStar = errors.New("the base cannot have this NAR as a member")
)

// A delta takes at most packedPart of packedOf of what it replaces: less gain is not worth the work of
// restoring it.
const packedPart, packedOf = 3, 4

// Packer stores NARs of a cache as deltas. It decides nothing by itself. It is safe for concurrent use.
type Packer struct{ c *Cache }

// NewPacker returns a Packer of c.
func NewPacker(c *Cache) *Packer { return &Packer{c} }

// Version is a NAR that is here as a whole.
type Version struct {
	Nar     nix.NarHash
	Used    time.Time   // last, to about ten minutes
	Size    int64       // bytes of its smallest file
	Base    nix.NarHash // zero unless it is a delta
	Members int         // deltas against it
}

// Versions returns what is here, each NAR once, in no particular order.
func (p *Packer) Versions() []Version {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	list := make([]Version, 0, len(p.c.state.index))
	for nar, e := range p.c.state.index {
		v := Version{Nar: nar}
		used := int64(0)
		for ; e != nil; e = e.sibling {
			used = max(used, e.used)
			v.Members += len(e.members)
			if e.packed() {
				v.Base, v.Size = e.baseNar(), e.size
			} else if v.Base == (nix.NarHash{}) && (v.Size == 0 || e.size < v.Size) {
				v.Size = e.size
			}
		}
		v.Used = time.Unix(used, 0)
		list = append(list, v)
	}
	return list
}

// Full returns the bytes that the files take and those that they may take.
func (p *Packer) Full() (used, size int64) { return p.c.Usage(), p.c.max }

// Deltas returns what is kept as deltas.
func (p *Packer) Deltas() Deltas {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	return p.c.state.deltas
}

// Pack stores a NAR as a delta of another one that is here as a whole, in place of its other forms, and
// returns how many bytes that saves. It calls pace again and again while it works, with ctx, and ends with the error of that.
// A power failure or the end of the process at any moment leaves the one form or the other. Room is made as
// for trees and for a download. The error wraps ErrPoor if the delta is not much smaller, fs.ErrNotExist if
// one of the two is not here.
func (p *Packer) Pack(ctx context.Context, nar, base *verify.Info, pace func(context.Context) error) (saved int64, err error) {
	k := packJob{c: p.c, nar: claimOf(nar), base: claimOf(base), pace: pace}
	if err := k.begin(); err != nil {
		return 0, fmt.Errorf("narcache: pack %s: %w", k.nar.nar, err)
	}
	saved, err = k.run(ctx)
	k.end()
	if err != nil {
		return 0, fmt.Errorf("narcache: pack %s: %w", k.nar.nar, err)
	}
	for k.dropOld() {
	}
	return saved, nil
}

// packJob is one Pack.
type packJob struct {
	c         *Cache
	nar, base claim
	pace      func(context.Context) error
	from      *entry // what is here of nar, in use
	to        *entry // of base, in use
	record    record // of the delta
	before    [2]lastUse
}

// lastUse is what the use of an entry was.
type lastUse struct {
	used int64
	hits int
}

// begin finds the two and has them stay.
func (k *packJob) begin() error {
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	s := &k.c.state
	k.to = s.whole(k.base.nar)
	if k.from = s.delta(k.nar.nar); k.from == nil {
		k.from = s.whole(k.nar.nar)
	}
	switch {
	case k.to == nil || k.from == nil:
		return fs.ErrNotExist
	case k.to.nar == k.from.nar, len(k.to.members) >= MaxMembers, k.from.base == k.to:
		return errStar
	}
	was := k.from.size
	if k.from.packed() {
		was = k.from.was
	}
	for e := s.index[k.nar.nar]; e != nil; e = e.sibling {
		if len(e.members) > 0 {
			return errStar
		}
	}
	k.record = record{
		key:     key{k.nar.nar, nix.Form{Compression: packed, File: nix.FileHash(k.base.nar)}},
		packing: packing{narSize: k.nar.size, baseSize: k.base.size, was: was},
	}
	s.acquire(k.to)
	s.acquire(k.from)
	k.before = [2]lastUse{{k.from.used, k.from.hits}, {k.to.used, k.to.hits}}
	return nil
}

// end undoes begin. That the two were read was no use of them.
func (k *packJob) end() {
	k.c.mu.Lock()
	for i, e := range []*entry{k.from, k.to} {
		if e.hits == k.before[i].hits {
			e.used = k.before[i].used
		}
	}
	k.c.mu.Unlock()
	k.c.release(k.from)
	k.c.release(k.to)
}

func (k *packJob) run(ctx context.Context) (saved int64, err error) {
	if k.c.health.degraded() || k.c.place.Load() == nil {
		return 0, ErrDegraded
	}
	base, err := k.c.tree(ctx, k.to, k.base)
	if err != nil {
		return 0, fmt.Errorf("base: %w", err)
	}
	defer base.Close()
	tmp := tmpDir + "/" + strconv.FormatUint(k.c.nextTmp.Add(1), 10)
	most := k.record.was * packedPart / packedOf
	if err := k.c.reserve(cost(most)); err != nil {
		return 0, err
	}
	defer func() {
		k.c.mu.Lock()
		k.c.count(-cost(most))
		k.c.mu.Unlock()
	}()
	if k.record.size, err = k.write(ctx, tmp, base, most); err == nil {
		err = k.replace(tmp)
	}
	if err != nil {
		_ = k.c.place.Load().Remove(tmp)
		return 0, err
	}
	return cost(k.record.was) - cost(k.record.size), nil
}

// write makes the delta, writes it through, and decodes it.
func (k *packJob) write(ctx context.Context, tmp string, base *tree, most int64) (size int64, err error) {
	nar, err := k.c.tree(ctx, k.from, k.nar)
	if err != nil {
		return 0, err
	}
	defer nar.Close()
	f, err := k.c.place.Load().OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, k.c.health.failed("create", err)
	}
	defer f.Close()
	out := &limited{diskWriter: diskWriter{f: f}, left: most}
	if _, err = delta.Encode(ctx, out, base, paced{nar, func() error { return k.pace(ctx) }}); err != nil {
		if out.err != nil {
			err = k.c.health.failed("write", out.err)
		}
		return 0, err
	}
	if err := k.c.disk.sync(f); err != nil {
		return 0, k.c.health.failed("commit", err)
	}
	size = most - out.left
	src := readerFunc(func(b []byte) (int, error) {
		if err := k.pace(ctx); err != nil {
			return 0, err
		}
		return f.Read(b)
	})
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	return size, makes(delta.NewReader(src, base, base.Size(), k.nar.size), nil, k.nar)
}

// replace gives the delta its name and its place among the entries, and counts its bytes.
func (k *packJob) replace(tmp string) error {
	at := k.c.place.Load()
	k.c.naming.Lock()
	defer k.c.naming.Unlock()
	k.c.mu.Lock()
	s := &k.c.state
	used, gone := time.Unix(k.before[0].used, 0), k.from.gone || k.to.gone || s.closed || s.removing[k.record.key] != nil
	full := len(k.to.members) >= MaxMembers
	k.c.mu.Unlock()
	if gone || full {
		return errStar
	}
	if err := at.Chtimes(tmp, time.Time{}, used); err != nil {
		return k.c.health.failed("commit", err)
	}
	if err := at.Rename(tmp, k.record.name()); err != nil {
		return k.c.health.failed("commit", err)
	}
	// The name has to be on the disk before those of the other forms go.
	if d, err := at.Open(shard(k.nar.nar)); err != nil || k.c.disk.sync(d) != nil {
		_ = at.Remove(k.record.name())
		return k.c.health.failed("commit", errors.Join(err, errShard))
	} else if err := d.Close(); err != nil {
		return err
	}
	e := &entry{record: k.record, file: k.record.name(), named: true, intact: true}
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	if k.from.gone || k.to.gone {
		_ = at.Remove(e.file)
		return errStar
	}
	s.policy.takePlace(e, k.from)
	e.used, e.stamped = used.Unix(), used.Unix()
	e.sibling, s.index[e.nar] = s.index[e.nar], e
	s.idle += cost(e.size)
	s.join(e, k.to)
	k.c.count(cost(e.size))
	return nil
}

var errShard = errors.New("the directory was not written through")

// dropOld removes a form of the NAR that is not needed any more, and reports whether there was one. One that
// is in use goes when it is not.
func (k *packJob) dropOld() bool {
	k.c.mu.Lock()
	var old *entry
	for e := k.c.state.index[k.nar.nar]; e != nil; e = e.sibling {
		if e.form != k.record.form && (e.refs == 0 || e.packed()) {
			old = e
		}
	}
	k.c.mu.Unlock()
	return old != nil && k.c.drop(old)
}

// limited is a file that a delta is written to: it has to be small.
type limited struct {
	diskWriter
	left int64
}

// Write is part of io.Writer.
func (w *limited) Write(p []byte) (int, error) {
	if int64(len(p)) > w.left {
		return 0, ErrPoor
	}
	n, err := w.diskWriter.Write(p)
	w.left -= int64(n)
	return n, err
}

// paced is a NAR that is read no faster than pace says.
type paced struct {
	delta.Tree
	pace func() error
}

// ReadAt is part of io.ReaderAt.
func (t paced) ReadAt(p []byte, off int64) (int, error) {
	if err := t.pace(); err != nil {
		return 0, err
	}
	return t.Tree.ReadAt(p, off)
}
