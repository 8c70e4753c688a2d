package sourcetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"sync"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/verify"
)

// Action is what a Fake's body does at a byte.
type Action int

// The actions.
const (
	Nothing  Action = iota
	Die             // fails
	End             // ends as if that were all
	Flip            // gives a wrong byte
	Hang            // gives no byte more until the context ends or the body is closed
	Wait            // gives no byte more until the fault's Until is closed
	Misread         // says that its own file cannot be decoded
	Overflow        // goes on behind the end; At does not matter
)

// Fault is how the NARs of a Fake are wrong.
type Fault struct {
	Do    Action
	At    int64 // byte of the form
	Until <-chan struct{}
	Times int // so many NARs meet it, 0 is all
	// Only: this form meets it; nil is all.
	Only *nix.Form
}

// ErrDied is what a body that dies says.
var ErrDied = errors.New("sourcetest: the source died")

// Conviction is a call of Convict.
type Conviction struct {
	Path nix.StorePath
	Form nix.Form
	Err  error
}

// Fake is a source in memory: a store, a disk memory, a peer or an upstream. It is safe for
// concurrent use.
type Fake struct {
	name string

	mu        sync.Mutex
	infos     map[nix.StoreHash]*verify.Info
	blobs     map[nix.NarHash]map[nix.Form][]byte
	faults    []*Fault
	onInfo    func(ctx context.Context, h nix.StoreHash) (*verify.Info, error)
	onNAR     func(ctx context.Context, info *verify.Info, form nix.Form) error
	down      bool
	crowded   bool
	forgives  bool
	asked     map[nix.StoreHash]int
	opened    map[nix.Form]int
	offsets   []int64
	gave      int64
	open      int
	read      int
	convicted []Conviction
	put       []*verify.Info
}

// NewFake returns an empty source with this name.
func NewFake(name string) *Fake {
	return &Fake{
		name: name, infos: map[nix.StoreHash]*verify.Info{}, blobs: map[nix.NarHash]map[nix.Form][]byte{},
		asked: map[nix.StoreHash]int{}, opened: map[nix.Form]int{},
	}
}

var (
	_ resolve.Far    = (*Fake)(nil)
	_ resolve.Memory = (*Fake)(nil)
)

// Add gives f paths that key has signed, and their raw NARs.
func (f *Fake) Add(t testing.TB, key nixtest.Key, paths ...nixtest.Path) {
	t.Helper()
	for _, p := range paths {
		info := p.Info(t, key)
		f.AddInfo(info)
		f.AddBytes(info.NarHash(), nix.Raw, p.NAR)
	}
}

// AddFile gives f a path whose NAR is offered as a compressed file, and decodes it if raw is
// asked for. edit changes the narinfo's unsigned fields; it may be nil.
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

// Remove takes a path away, with its NAR.
func (f *Fake) Remove(p nixtest.Path) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.infos, p.Hash())
	delete(f.blobs, p.NarHash())
}

// SetFaults makes NARs meet the faults, all of them; none heals it.
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

// SetCrowded makes Crowded say so.
func (f *Fake) SetCrowded(crowded bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crowded = crowded
}

// SetForgiving makes Convict have no effect but its record: the next NAR is as wrong.
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

// Name returns the label.
func (f *Fake) Name() string { return f.name }

// Down says what SetDown said.
func (f *Fake) Down() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.down
}

// Crowded is part of resolve.Far.
func (f *Fake) Crowded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crowded
}

// Put keeps info.
func (f *Fake) Put(info *verify.Info) {
	f.AddInfo(info)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put = append(f.put, info)
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
		return nil, fmt.Errorf("%s: %s: %w", f.name, h, fs.ErrNotExist)
	}
	return info, nil
}

// NAR gives a form of a NAR that was added.
func (f *Fake) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	f.mu.Lock()
	on := f.onNAR
	f.mu.Unlock()
	if on != nil {
		if err := on(ctx, info, form); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.blobs[info.NarHash()][form]
	if !ok {
		return nil, fmt.Errorf("%s: NAR of %s: %w", f.name, info.StorePath(), fs.ErrNotExist)
	}
	if off > int64(len(b)) {
		return nil, fmt.Errorf("%s: offset %d of %d", f.name, off, len(b))
	}
	f.opened[form]++
	f.offsets = append(f.offsets, off)
	f.open++
	r := &body{f: f, ctx: ctx.Done(), why: ctx.Err, data: b, pos: off, closed: make(chan struct{})}
	kept := f.faults[:0:0]
	for _, fault := range f.faults {
		if fault.Only != nil && *fault.Only != form {
			kept = append(kept, fault)
			continue
		}
		r.faults = append(r.faults, *fault)
		if fault.Times--; fault.Times != 0 {
			kept = append(kept, fault)
		}
	}
	f.faults = kept
	return &verify.Unverified{Body: r, Size: int64(len(b))}, nil
}

// Convict records the verdict, and drops what was wrong.
func (f *Fake) Convict(info *verify.Info, form nix.Form, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.convicted = append(f.convicted, Conviction{info.StorePath(), form, err})
	if !f.forgives {
		delete(f.blobs[info.NarHash()], form)
	}
}

// Asked returns how often f was asked for the narinfo of a path.
func (f *Fake) Asked(h nix.StoreHash) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[h]
}

// AskedAll returns how often f was asked for any narinfo.
func (f *Fake) AskedAll() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for v := range maps.Values(f.asked) {
		n += v
	}
	return n
}

// Opened returns how often a form was opened.
func (f *Fake) Opened(form nix.Form) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opened[form]
}

// Offsets returns where NARs were opened, in order.
func (f *Fake) Offsets() []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]int64(nil), f.offsets...)
}

// Gave returns how many bytes were read from f.
func (f *Fake) Gave() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gave
}

// Open returns how many bodies are not closed.
func (f *Fake) Open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open
}

// Reading returns how many NARs were read from.
func (f *Fake) Reading() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read
}

// Convicted returns the calls of Convict.
func (f *Fake) Convicted() []Conviction {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Conviction(nil), f.convicted...)
}

// PutInfos returns the calls of Put.
func (f *Fake) PutInfos() []*verify.Info {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*verify.Info(nil), f.put...)
}

// body is one NAR being read.
type body struct {
	f      *Fake
	ctx    <-chan struct{}
	why    func() error
	data   []byte
	pos    int64
	faults []Fault
	once   sync.Once
	read   sync.Once
	closed chan struct{}
}

// step is the most that is given at once: small, so that faults lie between reads.
const step = 32 << 10

func (b *body) Read(p []byte) (int, error) {
	b.read.Do(func() {
		b.f.mu.Lock()
		b.f.read++
		b.f.mu.Unlock()
	})
	select {
	case <-b.closed:
		return 0, errors.New("sourcetest: body is closed")
	case <-b.ctx:
		return 0, b.why()
	default:
	}
	end := min(int64(len(b.data)), b.pos+min(step, int64(len(p))))
	for _, fault := range b.faults {
		if fault.Do == Nothing || fault.Do == Flip || fault.Do == Overflow {
			continue
		}
		if fault.At == b.pos {
			if n, err, done := b.act(fault); done {
				return n, err
			}
		} else if fault.At > b.pos {
			end = min(end, fault.At)
		}
	}
	if b.pos == int64(len(b.data)) {
		for _, fault := range b.faults {
			if fault.Do == Overflow && len(p) > 0 {
				p[0] = 0
				return 1, nil
			}
		}
		return 0, io.EOF
	}
	n := copy(p, b.data[b.pos:end])
	for _, fault := range b.faults {
		if fault.Do == Flip && fault.At >= b.pos && fault.At < b.pos+int64(n) {
			p[fault.At-b.pos] ^= 0x40
		}
	}
	b.pos += int64(n)
	b.f.mu.Lock()
	b.f.gave += int64(n)
	b.f.mu.Unlock()
	return n, nil
}

func (b *body) act(fault Fault) (int, error, bool) {
	var until <-chan struct{}
	switch fault.Do {
	case Die:
		return 0, ErrDied, true
	case End:
		return 0, io.EOF, true
	case Misread:
		return 0, &verify.InvalidError{Reason: verify.ReasonEncoding, Err: errors.New("sourcetest: not what it says")}, true
	case Wait:
		until = fault.Until
	}
	select {
	case <-until:
		return 0, nil, false
	case <-b.ctx:
		return 0, b.why(), true
	case <-b.closed:
		return 0, errors.New("sourcetest: body is closed"), true
	}
}

func (b *body) Close() error {
	b.once.Do(func() {
		close(b.closed)
		b.f.mu.Lock()
		b.f.open--
		b.f.mu.Unlock()
	})
	return nil
}

// Noise returns size bytes, the same each time.
func Noise(size int) []byte { return bytes.Clone(nixtest.NewPath("noise", size).Contents) }
