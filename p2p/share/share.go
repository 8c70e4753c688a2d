// Package share is what this machine shows to its peers: the paths of its store, its NAR cache
// and its running downloads that a share key signed. A Holder reads these three and, by
// construction, cannot reach the network; an Announcer keeps the inventory and the DHT true
// to it.
package share

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

// Path is a path of the store that may be shown to others.
type Path = source.SharedPath

// Store is this machine's Nix store.
type Store interface {
	// Public returns the narinfo of a path that a share key signed.
	Public(ctx context.Context, h nix.StoreHash) (*verify.Info, error)
	source.NARs
	// Tree opens a NAR that is read at any place.
	Tree(ctx context.Context, info *verify.Info) (source.Tree, error)
	// Shares returns all paths that a share key signed.
	Shares() iter.Seq[Path]
	// Listed returns what Shares says of one path.
	Listed(h nix.StoreHash) (Path, bool)
}

// Infos remembers narinfos.
type Infos interface {
	// Public returns the narinfo of a path that a share key signed.
	Public(ctx context.Context, h nix.StoreHash) (*verify.Info, error)
	// Each returns the narinfos whose path and NAR hash keep accepts.
	Each(ctx context.Context, keep func(nix.StoreHash, nix.NarHash) bool) iter.Seq[*verify.Info]
}

// Cache is the NARs kept on disk, and the downloads that fill it. CacheOf makes one.
type Cache interface {
	source.NARs
	// Tree opens a raw NAR that is read at any place. If there are only files of it, one is decoded.
	Tree(ctx context.Context, info *verify.Info) (source.Tree, error)
	// Sizes returns the forms that are here as a whole, raw first.
	Sizes(nar nix.NarHash) []source.Sized
	// Prove checks that a file holds the signed NAR, once.
	Prove(ctx context.Context, info *verify.Info, form nix.Form) error
	// Proven reports whether Prove has nothing to do.
	Proven(nar nix.NarHash, form nix.Form) bool
	// Downloads returns the downloads of a NAR that are running.
	Downloads(nar nix.NarHash) []Download
}

// Download is a form that is coming in.
type Download interface {
	Form() nix.Form
	Size() int64 // of the whole form
	// Readable returns how many bytes another machine can read now.
	Readable() int64
	// PeerReader reads what may be shown to another machine, from byte off on, as it comes.
	PeerReader(off int64) io.ReadCloser
}

// Config is what a Holder reads. Cache and Infos may be nil.
type Config struct {
	Store     Store
	Cache     Cache
	Infos     Infos
	ShareKeys []string // names
}

// Holder is what this machine shares, and the one set of shared paths. All other paths are
// absent (an error that wraps fs.ErrNotExist), whatever the reason, and are answered from
// memory, in the same time. It is safe for concurrent use.
type Holder struct {
	cfg    Config
	set    *set
	local  *inventory.Local
	memory *semaphore.Weighted // bytes of tails that are held back
	decode *machine.Slots      // files that are decoded while they are sent
	came   atomic.Int64        // when a NAR last began to come in, Unix nanoseconds
	proofs *semaphore.Weighted // files that are decoded before they are sent
}

const (
	// maxMemory is for the tails of NARs that are being sent; beyond it tails are short.
	maxMemory = 48 << 20
	// maxDecode and maxProofs: decoding for peers takes so many cores at most.
	maxDecode = 2
	maxProofs = 2
	// proveWait is how long a peer waits for others' files to be decoded.
	proveWait = 3 * time.Second
)

// New returns a Holder that has nothing yet: Announcer.Run fills it.
func New(cfg Config) *Holder {
	local := inventory.NewLocal()
	return &Holder{
		cfg: cfg, local: local, set: newSet(local),
		memory: semaphore.NewWeighted(maxMemory),
		decode: machine.NewSlots(maxDecode), proofs: semaphore.NewWeighted(maxProofs),
	}
}

var errAbsent = fmt.Errorf("not shared: %w", fs.ErrNotExist)

// ErrBusy says that a NAR is here, but that making it takes work that this machine does for
// others at the moment.
var ErrBusy = errors.New("share: busy decoding")

// Inventory returns what neighbours are told of the set.
func (h *Holder) Inventory() *inventory.Local { return h.local }

// Len returns the number of shared paths.
func (h *Holder) Len() int { return h.set.Len() }

// InStore reports whether the store can serve a NAR to everybody, so that a copy in the cache
// is of no use.
func (h *Holder) InStore(nar nix.NarHash) bool {
	r, ok := h.set.byNAR(nar)
	return ok && r.where&inStore != 0
}

// Shares reports whether a path is in the set.
func (h *Holder) Shares(path nix.StoreHash) bool { return h.set.has(path, inStore|inCache) }

// StoreChanged follows the store: paths came to be shared, or are not any more.
func (h *Holder) StoreChanged(added, removed []nix.StoreHash) {
	for _, hash := range removed {
		h.set.remove(hash, inStore)
	}
	for _, hash := range added {
		// The store has just checked the signature, and checks it again for each request.
		if p, ok := h.cfg.Store.Listed(hash); ok {
			h.set.add(p, inStore, nil)
		}
	}
}

// Downloading notes a NAR that begins to come in: its path is shared from now on, and so are, in
// some seconds, remembered paths that have the same NAR.
func (h *Holder) Downloading(info *verify.Info) {
	if info.SignedByAny(h.cfg.ShareKeys) {
		h.set.add(pathOf(info), inCache, info)
	}
	h.came.Store(time.Now().UnixNano())
}

// Known notes a narinfo that came to be known: its path is shared from now on if the cache has, or
// is getting, its NAR under whatever name.
func (h *Holder) Known(info *verify.Info) {
	if info.SignedByAny(h.cfg.ShareKeys) && h.cached(info.NarHash()) {
		h.set.add(pathOf(info), inCache, info)
	}
}

func pathOf(info *verify.Info) Path {
	return Path{Store: info.StorePath().Hash(), Nar: info.NarHash(), Size: info.NarSize()}
}

// Page returns a part of the list of shared paths, the newest first: those with numbers below before,
// or the newest ones if it is 0. It lists what Info would answer for, and nothing else.
func (h *Holder) Page(before uint64) source.SharedPage { return h.set.page(before) }

// Answer is what a question for a narinfo gets.
type Answer struct {
	Text  []byte
	Forms []wire.Present
}

// Info answers a question for a narinfo.
func (h *Holder) Info(ctx context.Context, q nix.Question) (Answer, error) {
	r, ok := h.set.byQuestion(q)
	if !ok {
		return Answer{}, errAbsent
	}
	info, err := h.info(ctx, r)
	if err != nil {
		return Answer{}, err
	}
	a := Answer{Text: info.Offer(nix.Raw), Forms: h.forms(ctx, r)}
	if len(a.Text) > wire.MaxInfo || len(a.Forms) == 0 {
		// The others would take a longer text for damaged, and it says nothing of use
		// when the bytes have just gone.
		return Answer{}, errAbsent
	}
	return a, nil
}

// info returns the narinfo of a shared path.
func (h *Holder) info(ctx context.Context, r record) (*verify.Info, error) {
	var info *verify.Info
	err := errAbsent
	if r.where&inStore != 0 {
		info, err = h.cfg.Store.Public(ctx, r.path.Store)
	}
	if err != nil && r.info != nil {
		info, err = r.info, nil
	}
	if err != nil && r.where&inCache != 0 && h.cfg.Infos != nil {
		info, err = h.cfg.Infos.Public(ctx, r.path.Store)
	}
	if err != nil {
		return nil, err
	}
	if info.NarHash() != r.path.Nar || !info.SignedByAny(h.cfg.ShareKeys) {
		return nil, errAbsent // it has changed since it was listed
	}
	return info, nil
}

// forms lists what is here of a shared path, whole forms first. Nothing is read.
func (h *Holder) forms(ctx context.Context, r record) (list []wire.Present) {
	if r.where&inStore != 0 {
		list = append(list, wire.Present{Form: nix.Raw, Bytes: r.path.Size, Size: r.path.Size})
	}
	if h.cfg.Cache == nil || r.where&inCache == 0 {
		return list
	}
	has := func(form nix.Form) bool {
		for _, p := range list {
			if p.Form == form {
				return true
			}
		}
		return false
	}
	for _, s := range h.cfg.Cache.Sizes(r.path.Nar) {
		if !has(s.Form) {
			list = append(list, wire.Present{Form: s.Form, Bytes: s.Size, Size: s.Size})
		}
	}
	for _, d := range h.cfg.Cache.Downloads(r.path.Nar) {
		if !has(d.Form()) {
			list = append(list, wire.Present{Form: d.Form(), Bytes: d.Readable(), Size: d.Size()})
		}
	}
	return list
}
