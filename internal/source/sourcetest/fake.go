package sourcetest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// Report is a call of Invalid.
type Report struct {
	Path nix.StorePath
	Form nix.Form
	Err  error
}

// Fake is a source in memory: a store, narinfos on disk or an upstream. It fails on demand.
// It is safe for concurrent use.
type Fake struct {
	role  source.Role
	share []string // names of keys whose paths Public shows

	mu        sync.Mutex
	infos     map[nix.StoreHash]*verify.Info
	blobs     map[nix.NarHash]map[nix.Form][]byte
	faults    []*Fault
	onInfo    func(ctx context.Context, h nix.StoreHash) (*verify.Info, error)
	onNAR     func(ctx context.Context, info *verify.Info, form nix.Form) error
	down      bool
	saturated bool
	forgives  bool
	delta     bool // Update says so
	pace      source.Pace
	latency   time.Duration
	rate      int64
	asked     map[nix.StoreHash]int
	public    int // calls of Public
	anonymous int // calls of Info or NAR through Anonymous
	opened    map[nix.Form]int
	offsets   []int64
	gave      int64
	open      int
	read      int
	invalid   []Report
	put       []*verify.Info
	forgotten []nix.StoreHash
}

// NewFake returns an empty source that plays role.
func NewFake(role source.Role) *Fake {
	return &Fake{
		role: role, infos: map[nix.StoreHash]*verify.Info{}, blobs: map[nix.NarHash]map[nix.Form][]byte{},
		asked: map[nix.StoreHash]int{}, opened: map[nix.Form]int{},
	}
}

var (
	_ source.LocalStore = (*Fake)(nil)
	_ source.InfoCache  = (*Fake)(nil)
	_ source.Upstreams  = (*Fake)(nil)
)

// Share names the keys whose paths Public shows. It is called before the Fake is used.
func (f *Fake) Share(keys ...string) *Fake {
	f.share = keys
	return f
}

// Role returns the role.
func (f *Fake) Role() source.Role { return f.role }

// Add gives f paths that key has signed, and their raw NARs.
func (f *Fake) Add(t testing.TB, key nixtest.Key, paths ...nixtest.Path) {
	t.Helper()
	for _, p := range paths {
		info := p.Info(t, key)
		f.AddInfo(info)
		f.AddBytes(info.NarHash(), nix.Raw, p.NAR)
	}
}

// AddFile gives f a path whose NAR is offered as a compressed file, and also raw. edit changes
// the narinfo's unsigned fields; it may be nil.
func (f *Fake) AddFile(t testing.TB, key nixtest.Key, p nixtest.Path, c nix.Compression, edit func(*nix.NarInfo)) (*verify.Info, nixtest.Compressed) {
	t.Helper()
	file := nixtest.Compress(t, c, p.NAR)
	n := file.NarInfo(p, key)
	if edit != nil {
		edit(n)
	}
	info, err := nixtest.Keys(t, key).OpenNarInfo(n, p.Hash())
	if err != nil {
		t.Fatal(err)
	}
	f.AddInfo(info)
	f.AddBytes(info.NarHash(), nix.Raw, p.NAR)
	if form, ok := info.FileForm(); ok {
		f.AddBytes(info.NarHash(), form, file.Bytes)
	}
	return info, file
}

// AddInfo gives f a narinfo.
func (f *Fake) AddInfo(info *verify.Info) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.infos[info.StorePath().Hash()] = info
}

// AddBytes gives f a form of a NAR, which may be wrong; nil takes it away.
func (f *Fake) AddBytes(nar nix.NarHash, form nix.Form, b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.blobs[nar] == nil {
		f.blobs[nar] = map[nix.Form][]byte{}
	}
	if f.blobs[nar][form] = b; b == nil {
		delete(f.blobs[nar], form)
	}
}

// SetFaults makes NARs meet the faults, all of them. No faults heal it.
func (f *Fake) SetFaults(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
	for _, fault := range faults {
		f.faults = append(f.faults, &fault)
	}
}

// SetDown makes Down say so.
func (f *Fake) SetDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

// SetSaturated makes Saturated say so.
func (f *Fake) SetSaturated(saturated bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.saturated = saturated
}

// SetPace makes Pace return p.
func (f *Fake) SetPace(p source.Pace) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pace = p
}

// SetSpeed makes NARs begin after latency and come at rate bytes a second. 0 is at once.
func (f *Fake) SetSpeed(latency time.Duration, rate int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.latency, f.rate = latency, rate
}

// SetForgiving makes Invalid have no effect but its record: the next NAR is as wrong.
func (f *Fake) SetForgiving() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgives = true
}

// OnInfo makes fn answer for narinfos; it may block. Nil, nil leaves the answer to f.
func (f *Fake) OnInfo(fn func(ctx context.Context, h nix.StoreHash) (*verify.Info, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onInfo = fn
}

// OnNAR makes fn be called before a NAR is opened; it may block, and an error is the answer.
func (f *Fake) OnNAR(fn func(ctx context.Context, info *verify.Info, form nix.Form) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onNAR = fn
}

// Down returns what SetDown set.
func (f *Fake) Down() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.down
}

// Saturated returns what SetSaturated set.
func (f *Fake) Saturated() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.saturated
}

// Pace returns what SetPace set.
func (f *Fake) Pace() source.Pace {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pace
}

// Anonymous returns f in a form that counts the questions.
func (f *Fake) Anonymous() source.Upstreams { return anonymous{f} }

type anonymous struct{ *Fake }

func (a anonymous) count() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.Fake.anonymous++
}

func (a anonymous) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	a.count()
	return a.Fake.Info(ctx, h)
}

func (a anonymous) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	a.count()
	return a.Fake.NAR(ctx, info, form, off)
}

func (a anonymous) Update(ctx context.Context, info *verify.Info, form nix.Form) (*verify.Unverified, bool, error) {
	a.count()
	return a.Fake.Update(ctx, info, form)
}

// Put keeps info.
func (f *Fake) Put(info *verify.Info) {
	f.AddInfo(info)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put = append(f.put, info)
}

// Forget drops the narinfo of a path.
func (f *Fake) Forget(h nix.StoreHash) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.infos, h)
	f.forgotten = append(f.forgotten, h)
}

// Info answers for a path.
func (f *Fake) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	f.mu.Lock()
	f.asked[h]++
	info, ok := f.infos[h]
	on := f.onInfo
	f.mu.Unlock()
	if on != nil {
		if info, err := on(ctx, h); info != nil || err != nil {
			return info, err
		}
	}
	if !ok {
		return nil, fmt.Errorf("%s: %s: %w", f.role, h, fs.ErrNotExist)
	}
	return info, nil
}

// Public is Info for paths that the keys named to Share signed.
func (f *Fake) Public(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	f.mu.Lock()
	f.public++
	f.mu.Unlock()
	info, err := f.Info(ctx, h)
	if err == nil && !info.SignedByAny(f.share) {
		return nil, fmt.Errorf("%s: %s: %w", f.role, h, fs.ErrNotExist)
	}
	return info, err
}

// NAR gives a form of a NAR that was added.
func (f *Fake) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	f.mu.Lock()
	on, latency := f.onNAR, f.latency
	f.mu.Unlock()
	if on != nil {
		if err := on(ctx, info, form); err != nil {
			return nil, err
		}
	}
	if !pause(latency, ctx.Done(), nil) {
		return nil, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.blobs[info.NarHash()][form]
	if !ok {
		return nil, fmt.Errorf("%s: NAR of %s: %w", f.role, info.StorePath(), fs.ErrNotExist)
	}
	if off > int64(len(b)) {
		return nil, fmt.Errorf("%s: offset %d of %d", f.role, off, len(b))
	}
	f.opened[form]++
	f.offsets = append(f.offsets, off)
	f.open++
	r := newBody(ctx, b, off, f.rate)
	r.onRead = func(n int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if n < 0 {
			f.read++
		} else {
			f.gave += int64(n)
		}
	}
	r.onClose = func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.open--
	}
	r.faults, f.faults = take(f.faults, form)
	return &verify.Unverified{Body: r, Size: int64(len(b))}, nil
}

// SetDelta makes Update say that NARs come as deltas.
func (f *Fake) SetDelta(delta bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delta = delta
}

// Update is NAR for the form, or for the raw one after SetDelta.
func (f *Fake) Update(ctx context.Context, info *verify.Info, form nix.Form) (*verify.Unverified, bool, error) {
	f.mu.Lock()
	delta := f.delta
	f.mu.Unlock()
	if delta {
		form = nix.Raw
	}
	u, err := f.NAR(ctx, info, form, 0)
	return u, delta && err == nil, err
}

// Invalid records the report, and drops what was wrong.
func (f *Fake) Invalid(info *verify.Info, form nix.Form, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.invalid = append(f.invalid, Report{info.StorePath(), form, err})
	if !f.forgives {
		delete(f.blobs[info.NarHash()], form)
	}
}

// Asked returns how often f was asked for the narinfo of a path.
func (f *Fake) Asked(h nix.StoreHash) int { return count(f, func() int { return f.asked[h] }) }

// AskedAll returns how often f was asked for any narinfo.
func (f *Fake) AskedAll() int {
	return count(f, func() (n int) {
		for _, v := range f.asked {
			n += v
		}
		return n
	})
}

// AskedPublic returns how often Public was called.
func (f *Fake) AskedPublic() int { return count(f, func() int { return f.public }) }

// AskedAnonymously returns how often narinfos and NARs were asked for through Anonymous.
func (f *Fake) AskedAnonymously() int { return count(f, func() int { return f.anonymous }) }

// Opened returns how often a form was opened.
func (f *Fake) Opened(form nix.Form) int { return count(f, func() int { return f.opened[form] }) }

// Offsets returns where NARs were opened, in order.
func (f *Fake) Offsets() []int64 {
	return count(f, func() []int64 { return slices.Clone(f.offsets) })
}

// Gave returns how many bytes were read from f.
func (f *Fake) Gave() int64 { return count(f, func() int64 { return f.gave }) }

// Open returns how many bodies are not closed.
func (f *Fake) Open() int { return count(f, func() int { return f.open }) }

// Reading returns how many NARs were read from.
func (f *Fake) Reading() int { return count(f, func() int { return f.read }) }

// Reports returns the calls of Invalid.
func (f *Fake) Reports() []Report {
	return count(f, func() []Report { return slices.Clone(f.invalid) })
}

// PutInfos returns the calls of Put.
func (f *Fake) PutInfos() []*verify.Info {
	return count(f, func() []*verify.Info { return slices.Clone(f.put) })
}

// Forgotten returns the calls of Forget.
func (f *Fake) Forgotten() []nix.StoreHash {
	return count(f, func() []nix.StoreHash { return slices.Clone(f.forgotten) })
}

func count[T any](f *Fake, get func() T) T {
	f.mu.Lock()
	defer f.mu.Unlock()
	return get()
}

// ErrDied is what a body that dies says.
var ErrDied = errors.New("sourcetest: the source died")
