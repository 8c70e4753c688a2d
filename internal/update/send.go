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
	"time"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/taskgroup"
	"github.com/nixp2p/nixp2p/verify"
)

// sizeFactor: a base of another size than 1/sizeFactor to sizeFactor times the NAR's is of no use.
const sizeFactor = 4

// Encoder makes deltas of the NARs on this machine, for peers and for HTTP clients, within
// limits by machine. It is safe for concurrent use.
type Encoder struct {
	versions source.Versions
	slots    *slots
	codings  codings
	group    taskgroup.Group // makes codings
	metrics  *metrics.Metrics
	log      *slog.Logger
}

// NewEncoder returns an Encoder. Scratch makes a file for a delta that several machines get; if it is nil or fails, each
// has it made anew. If log is nil, nothing is logged. The caller closes it.
func NewEncoder(versions source.Versions, scratch func() (Scratch, error), m *metrics.Metrics, log *slog.Logger) *Encoder {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Encoder{
		versions: versions, slots: newSlots(), codings: codings{scratch: scratch, list: map[pair]*coding{}}, metrics: m, log: log,
	}
}

// Close drops the deltas that are kept. Nothing is sent any more.
func (e *Encoder) Close() {
	if e == nil {
		return
	}
	e.codings.stop()
	e.group.Close()
	e.codings.close()
}

// Ask is who asks for a NAR as a delta.
type Ask struct {
	To    netip.Prefix
	Info  *verify.Info // signed by a share key
	Bases []nix.NarHash
	// Plain is about how long the NAR takes without a delta: for a part of it an encoder is waited for, and
	// files are decoded that would take less. 0 is not known, or no time.
	Plain time.Duration
}

// Delta is a NAR that may be sent as what differs from a base that the receiver has. The caller
// closes it. It is for one goroutine.
type Delta struct {
	Base nix.NarHash

	e         *Encoder
	to        netip.Prefix
	info, old *verify.Info

	shared *coding // nil: it is made for this receiver alone, with the following
	making
}

// making is what a delta is made with.
type making struct {
	base, target source.Tree // nil: not open yet
	release      func(time.Duration)
	spent        time.Duration
}

// Open returns a delta, or nil if the machine gets the NAR as usual: this machine lacks the NAR, or all of the
// bases, or no encoder is free, or decoding them would take too long. A base that no share key signed does not exist,
// also in time: which there are is known from memory.
func (e *Encoder) Open(ctx context.Context, a Ask) *Delta {
	if e == nil || len(a.Bases) == 0 || a.Info.NarSize() < Least {
		return nil
	}
	d, packed, err := e.choose(ctx, a)
	if err != nil {
		e.noBase(a, err)
		return nil
	}
	if k, isNew := e.codings.join(pair{d.Base, a.Info.NarHash()}); k != nil {
		if d.shared = k; isNew {
			if err := e.begin(ctx, k, a, d); err != nil {
				e.codings.ended(k, delta.Stats{}, err)
				_ = d.Close() // it has no error
				return nil
			}
		}
		return d
	}
	ok := false
	if d.release, ok = e.slots.wait(ctx, a.To, a.Info.NarSize(), patience(a.Plain)); !ok {
		e.metrics.Delta.WithLabelValues("no_slot").Inc()
		return nil
	}
	if packed { // that takes time, and the other side waits for a beginning
		return d
	}
	if err := d.open(ctx); err != nil {
		_ = d.Close() // only read
		e.noBase(a, err)
		return nil
	}
	return d
}

// begin has a coding made, if an encoder is free or may soon be.
func (e *Encoder) begin(ctx context.Context, k *coding, a Ask, d *Delta) error {
	most := patience(a.Plain)
	release, later := e.slots.take(a.To, a.Info.NarSize())
	if release == nil && (later == nil || most == 0) {
		e.metrics.Delta.WithLabelValues("no_slot").Inc()
		return errNoSlot
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // others may wait for it as well
	e.codings.tell(k, func() { k.cancel = cancel })
	maker := &Delta{Base: d.Base, e: e, to: a.To, info: d.info, old: d.old, making: making{release: release}}
	if !e.group.Go(func() { defer cancel(); maker.make(ctx, k, most) }) {
		cancel()
		if release != nil {
			release(0)
		}
		return errClosed
	}
	return nil
}

func (e *Encoder) noBase(a Ask, err error) {
	e.metrics.Delta.WithLabelValues("no_base").Inc()
	if !source.Absent(err) {
		e.log.Debug("base of a delta", "to", a.To, "nar", a.Info.NarHash(), "err", err)
	}
}

var errNoBase = fmt.Errorf("none of the bases is here: %w", fs.ErrNotExist)

// choose returns a delta against the first of the bases that is here, and whether something has to be
// decoded for it.
func (e *Encoder) choose(ctx context.Context, a Ask) (d *Delta, packed bool, err error) {
	size := a.Info.NarSize()
	info, form, err := e.versions.Version(ctx, a.Info.NarHash())
	if err != nil {
		return nil, false, err
	}
	err = errNoBase
	for _, nar := range a.Bases {
		old, oldForm, oldErr := e.versions.Version(ctx, nar)
		switch {
		case source.Absent(oldErr):
		case oldErr != nil:
			err = oldErr
		case nar == a.Info.NarHash(), old.NarSize() < size/sizeFactor, old.NarSize()/sizeFactor > size:
		case !pays(a.Plain, unpacking(form, size)+unpacking(oldForm, old.NarSize())):
		default:
			d := &Delta{Base: nar, e: e, to: a.To, info: info, old: old, making: making{release: func(time.Duration) {}}}
			return d, form != nix.None || oldForm != nix.None, nil
		}
	}
	return nil, false, err
}

// open opens base and NAR, and decodes them if need be.
func (d *Delta) open(ctx context.Context) (err error) {
	if d.base, err = d.e.versions.Tree(ctx, d.old); err == nil {
		d.target, err = d.e.versions.Tree(ctx, d.info)
	}
	return err
}

// Send writes the delta to w, and tells read how many bytes of the NAR have been read. The NAR is hashed
// meanwhile: the delta is ended only if it is right.
func (d *Delta) Send(ctx context.Context, w io.Writer, read func(n int)) (err error) {
	var stats delta.Stats
	if d.shared != nil {
		stats, err = d.e.codings.follow(ctx, d.shared, w, read)
	} else {
		stats, err = d.encode(ctx, w, read)
	}
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

// encode makes the delta.
func (d *Delta) encode(ctx context.Context, w io.Writer, read func(n int)) (stats delta.Stats, err error) {
	runtime.LockOSThread() // whose time is counted
	defer runtime.UnlockOSThread()
	start := threadTime()
	if d.target == nil {
		err = whileAwake(w, func() error { return d.open(ctx) })
	}
	if err == nil {
		target := &hashed{Tree: d.target, proof: verify.NewProof(d.info.Digest(nix.Raw, d.target.Size())), read: read}
		stats, err = delta.Encode(ctx, w, d.base, target)
	}
	if invalid := source.Invalid(err); invalid != nil {
		d.e.versions.Invalid(d.info, nix.Raw, invalid)
	}
	d.spent = threadTime() - start
	d.e.metrics.DeltaCPUSeconds.Add(d.spent.Seconds())
	return stats, err
}

// Close gives the encoder back, and base and target to the garbage collector.
func (d *Delta) Close() (err error) {
	if d.shared != nil {
		d.e.codings.leave(d.shared)
		return nil
	}
	d.release(d.spent)
	for _, t := range []source.Tree{d.base, d.target} {
		if t != nil {
			err = errors.Join(err, t.Close())
		}
	}
	return err
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
