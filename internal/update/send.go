package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// familyMost is how many versions of a NAR are looked at for a proposed one.
const familyMost = 256

// Encoder makes deltas of the NARs in this machine's store, for peers and for HTTP clients, within
// limits by machine. It is safe for concurrent use.
type Encoder struct {
	trees   source.Trees
	slots   *slots
	metrics *metrics.Metrics
	log     *slog.Logger
}

// NewEncoder returns an Encoder. If log is nil, nothing is logged.
func NewEncoder(trees source.Trees, m *metrics.Metrics, log *slog.Logger) *Encoder {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Encoder{trees: trees, slots: newSlots(), metrics: m, log: log}
}

// Delta is a NAR that may be sent as what differs from a base that the receiver has. The caller
// closes it. It is for one goroutine.
type Delta struct {
	Base nix.NarHash

	e            *Encoder
	to           netip.Prefix
	info         *verify.Info
	base, target source.Tree
	release      func(time.Duration)
	spent        time.Duration
}

// Open returns a delta of info's NAR for a machine that has some bases, or nil if it gets the NAR as usual:
// the store lacks the NAR, or all of the bases, or no encoder is free. A share key must have signed info;
// a base that none signed does not exist, also in time: which there are is known from memory.
func (e *Encoder) Open(ctx context.Context, to netip.Prefix, info *verify.Info, bases []nix.NarHash) *Delta {
	if e == nil || len(bases) == 0 || info.NarSize() < Least {
		return nil
	}
	release, ok := e.slots.take(to, info.NarSize())
	if !ok {
		e.metrics.Delta.WithLabelValues("no_slot").Inc()
		return nil
	}
	d := &Delta{e: e, to: to, info: info, release: release}
	if err := d.open(ctx, bases); err != nil {
		release(0)
		e.metrics.Delta.WithLabelValues("no_base").Inc()
		if !source.Absent(err) {
			e.log.Debug("base of a delta", "to", to, "nar", info.NarHash(), "err", err)
		}
		return nil
	}
	return d
}

var errNoBase = fmt.Errorf("none of the bases is here: %w", fs.ErrNotExist)

// open opens the NAR and the first of the bases that is here.
func (d *Delta) open(ctx context.Context, bases []nix.NarHash) error {
	family := d.e.trees.Bases(d.info, familyMost)
	for _, nar := range bases {
		i := slices.IndexFunc(family, func(b source.Base) bool { return b.Nar == nar })
		if i < 0 {
			continue
		}
		base, err := openTree(ctx, d.e.trees, family[i])
		if source.Absent(err) {
			continue
		}
		if err != nil {
			return err
		}
		if d.target, err = d.e.trees.Tree(ctx, d.info); err != nil {
			return errors.Join(err, base.Close())
		}
		d.Base, d.base = nar, base
		return nil
	}
	return errNoBase
}

// Send writes the delta to w, and tells read how many bytes of the NAR have been read. The NAR is hashed
// meanwhile: the delta is ended only if it is right.
func (d *Delta) Send(ctx context.Context, w io.Writer, read func(n int)) error {
	runtime.LockOSThread() // whose time is counted
	defer runtime.UnlockOSThread()
	start := threadTime()
	target := &hashed{Tree: d.target, proof: verify.NewProof(d.info.Digest(nix.Raw, d.target.Size())), read: read}
	stats, err := delta.Encode(ctx, w, d.base, target)
	if invalid := source.Invalid(err); invalid != nil {
		d.e.trees.Invalid(d.info, nix.Raw, invalid)
	}
	d.spent = threadTime() - start
	d.e.metrics.DeltaCPUSeconds.Add(d.spent.Seconds())
	result := "sent"
	switch {
	case err != nil:
		result = "cut"
		d.e.log.Debug("delta ended early", "to", d.to, "nar", d.info.NarHash(), "err", err)
	case stats.Given > stats.Target/2:
		result = "poor"
	}
	d.e.metrics.Delta.WithLabelValues(result).Inc()
	return err
}

// Close gives the encoder back, and base and target to the garbage collector.
func (d *Delta) Close() error {
	d.release(d.spent)
	return errors.Join(d.base.Close(), d.target.Close())
}

// hashed hashes a NAR that is read from its beginning to its end, and gives its last bytes only if
// the hash is right.
type hashed struct {
	delta.Tree
	proof *verify.Proof
	at    int64
	read  func(n int)
}

// ReadAt is part of io.ReaderAt.
func (t *hashed) ReadAt(p []byte, off int64) (int, error) {
	if off != t.at {
		return 0, fmt.Errorf("update: delta reads byte %d, not %d", off, t.at)
	}
	n, err := t.Tree.ReadAt(p, off)
	t.at += int64(n)
	_, _ = t.proof.Write(p[:n]) // Check reports what it refuses
	if t.at == t.Size() {
		if wrong := t.proof.Check(); wrong != nil {
			return 0, wrong
		}
	}
	t.read(n)
	return n, err
}
