package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/infocache"
	"github.com/nixp2p/nixp2p/internal/narcache"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/localstore"
	"github.com/nixp2p/nixp2p/p2p"
	"github.com/nixp2p/nixp2p/verify"
)

// holder is what this machine shares with peers: the paths of its store that a share key
// signed, and the NARs that it keeps or is fetching whose narinfos one signed. It answers for
// all else as for what does not exist, from memory.
type holder struct {
	share    []string
	store    *localstore.Store
	cache    *narcache.Cache // nil when there is none
	disk     *infocache.Cache
	resolver *resolve.Resolver
	changed  func(added, removed []p2p.Held) // tells the node

	mu         sync.RWMutex
	byQuestion map[nix.Question]nix.StoreHash // of the store
	kept       map[nix.Question]*verify.Info  // of the cache and of downloads
	byNar      map[nix.NarHash]nix.Question   // of kept
}

func newHolder(share []string) *holder {
	return &holder{
		share: share, byQuestion: map[nix.Question]nix.StoreHash{}, kept: map[nix.Question]*verify.Info{},
		byNar: map[nix.NarHash]nix.Question{}, changed: func(_, _ []p2p.Held) {},
	}
}

var errNotShared = fmt.Errorf("not shared: %w", fs.ErrNotExist)

// Info answers a peer's question.
func (h *holder) Info(ctx context.Context, q nix.Question) (*verify.Info, error) {
	h.mu.RLock()
	hash, stored := h.byQuestion[q]
	info := h.kept[q]
	h.mu.RUnlock()
	if stored {
		if info, err := h.store.Shared(ctx, hash); err == nil {
			return info, nil
		}
	}
	if info == nil {
		return nil, errNotShared
	}
	return info, nil
}

// HasRaw tells whether a raw NAR is at hand, or coming.
func (h *holder) HasRaw(ctx context.Context, nar nix.NarHash) bool {
	if h.cache == nil || h.cache.Downloading(nar, nix.Raw) != nil {
		return true
	}
	if raw, _ := h.cache.Held(nar); raw {
		return true
	}
	_, err := h.store.SharedByNar(ctx, nar)
	return err == nil
}

// NAR gives the bytes, of the store or the cache as the resolver would give them to Nix,
// verified, or of a download as it grows. Nothing is asked of the network.
func (h *holder) NAR(ctx context.Context, nar nix.NarHash, form nix.Form, off int64) (*verify.Unverified, error) {
	info := h.shared(ctx, nar)
	if info == nil {
		return nil, errNotShared
	}
	if h.cache != nil {
		if d := h.cache.Downloading(nar, form); d != nil {
			body := growing{d.Share(off), info.StorePath()}
			if h.resolver.Decoding(nar, form, d.Size()) {
				return &verify.Unverified{Body: decoding{body, func() {}}, Size: d.Size()}, nil
			}
			return &verify.Unverified{Body: body, Size: d.Size()}, nil
		}
	}
	name := nix.NARName{Store: info.StorePath().Hash(), Nar: nar, Form: form}
	n, err := h.resolver.NAR(ctx, name, resolve.Query{
		Reach: resolve.ThisMachine | resolve.SharedOnly, Resume: !form.IsRaw(), ForPeer: true,
	})
	if err != nil {
		return nil, err
	}
	if !n.Ranges() || off > n.Size() {
		n.Close()
		return nil, errNotShared
	}
	if h.cache != nil {
		// It is being decoded from another form, for all who ask.
		if d := h.cache.Downloading(nar, form); d != nil {
			return &verify.Unverified{Body: decoding{growing{d.Share(off), info.StorePath()}, n.Close}, Size: d.Size()}, nil
		}
	}
	return &verify.Unverified{Body: pipe(ctx, n, off), Size: n.Size()}, nil
}

// decoding is a growing that depends on nobody: how much there is so far says nothing.
type decoding struct {
	g     growing
	leave func()
}

func (d decoding) Read(p []byte) (int, error)        { return d.g.Read(p) }
func (d decoding) About() (storePath, source string) { return d.g.About() }

func (d decoding) Close() error {
	d.leave()
	return d.g.Close()
}

// growing is a download as a peer reads it.
type growing struct {
	*narcache.Reader
	path nix.StorePath
}

// About says for people what it is and where it comes from.
func (g growing) About() (storePath, source string) { return g.path.String(), "cache" }

// shared returns the narinfo under which a NAR may be shown, or nil.
func (h *holder) shared(ctx context.Context, nar nix.NarHash) *verify.Info {
	if info, err := h.store.SharedByNar(ctx, nar); err == nil {
		return info
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.kept[h.byNar[nar]]
}

// pipe turns a NAR that sends itself into one that is read. Close ends the sending and waits
// for that.
func pipe(ctx context.Context, n *resolve.NAR, off int64) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	p := &piped{PipeReader: r, cancel: cancel, done: make(chan struct{}), path: n.StorePath(), giver: n.Giver()}
	go func() {
		defer close(p.done)
		defer n.Close()
		_ = w.CloseWithError(n.Send(ctx, w, off, n.Size()-off))
	}()
	return p
}

type piped struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
	path   nix.StorePath
	giver  string
}

// About says for people what it is and where it comes from.
func (p *piped) About() (storePath, source string) { return p.path.String(), p.giver }

func (p *piped) Close() error {
	p.cancel()
	err := p.PipeReader.Close()
	<-p.done
	return err
}

// Held lists everything that is shared now.
func (h *holder) Held(context.Context) iter.Seq[p2p.Held] {
	return func(yield func(p2p.Held) bool) {
		for s := range h.store.Shares() {
			if !yield(p2p.Held{Question: s.Store.Question(), NarHash: s.Nar, NarSize: s.Size}) {
				return
			}
		}
		h.mu.RLock()
		kept := make([]p2p.Held, 0, len(h.kept))
		for q, info := range h.kept {
			kept = append(kept, p2p.Held{Question: q, NarHash: info.NarHash(), NarSize: info.NarSize()})
		}
		h.mu.RUnlock()
		for _, x := range kept {
			if !yield(x) {
				return
			}
		}
	}
}

// storeChanged follows the own store. Of what has gone only the question is known.
func (h *holder) storeChanged(added, removed []nix.StoreHash) {
	var plus, minus []p2p.Held
	for _, hash := range removed {
		q := hash.Question()
		h.mu.Lock()
		delete(h.byQuestion, q)
		_, kept := h.kept[q]
		h.mu.Unlock()
		if !kept {
			minus = append(minus, p2p.Held{Question: q})
		}
	}
	for _, hash := range added {
		// The store has proven its signature a moment ago, and proves it again for whoever
		// asks: at the start that would double the work.
		s, ok := h.store.Listed(hash)
		if !ok {
			continue
		}
		q := hash.Question()
		h.mu.Lock()
		h.byQuestion[q] = hash
		h.mu.Unlock()
		plus = append(plus, p2p.Held{Question: q, NarHash: s.Nar, NarSize: s.Size})
	}
	h.changed(plus, minus)
}

// fetching notes a NAR that begins to come in: it counts as shared from now on.
func (h *holder) fetching(info *verify.Info) {
	if !info.SignedByAny(h.share) {
		return
	}
	q := info.StorePath().Hash().Question()
	h.mu.Lock()
	_, known := h.kept[q]
	h.kept[q] = info
	h.byNar[info.NarHash()] = q
	h.mu.Unlock()
	if !known {
		h.changed([]p2p.Held{{Question: q, NarHash: info.NarHash(), NarSize: info.NarSize()}}, nil)
	}
}

const sweepEvery = 10 * time.Second

// run finds the narinfos of what the cache has from earlier, then notices what leaves it.
func (h *holder) run(ctx context.Context) error {
	h.recall(ctx)
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			h.sweep()
		}
	}
}

// recall shares again what was kept over a restart: the cache knows NARs by their hash, the
// narinfos on disk say which paths they are.
func (h *holder) recall(ctx context.Context) {
	if h.cache == nil || h.disk == nil {
		return
	}
	have := map[nix.NarHash]bool{}
	for _, e := range h.cache.Entries() {
		have[e.Nar] = true
	}
	if len(have) == 0 {
		return
	}
	for _, hash := range h.disk.Hashes() {
		if ctx.Err() != nil {
			return
		}
		if info, err := h.disk.Info(ctx, hash); err == nil && have[info.NarHash()] {
			h.fetching(info)
		}
	}
}

// sweep takes out what neither the cache has nor a download brings.
func (h *holder) sweep() {
	var gone []p2p.Held
	h.mu.Lock()
	for q, info := range h.kept {
		if h.atHand(info) {
			continue
		}
		delete(h.kept, q)
		delete(h.byNar, info.NarHash())
		if _, stored := h.byQuestion[q]; !stored {
			gone = append(gone, p2p.Held{Question: q, NarHash: info.NarHash(), NarSize: info.NarSize()})
		}
	}
	h.mu.Unlock()
	if len(gone) > 0 {
		h.changed(nil, gone)
	}
}

// atHand tells whether the cache has or gets info's NAR in some form.
func (h *holder) atHand(info *verify.Info) bool {
	if h.cache == nil {
		return false
	}
	nar := info.NarHash()
	if raw, files := h.cache.Held(nar); raw || len(files) > 0 {
		return true
	}
	if h.cache.Downloading(nar, nix.Raw) != nil {
		return true
	}
	form, ok := info.FileForm()
	return ok && h.cache.Downloading(nar, form) != nil
}

// sharedStore is the own store as others may see it.
type sharedStore struct{ *localstore.Store }

func (s sharedStore) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	return s.Shared(ctx, h)
}

var _ p2p.Holder = (*holder)(nil)
