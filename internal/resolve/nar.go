package resolve

import (
	"context"
	"fmt"
	"io/fs"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// ForNAR returns the narinfo that signs the NAR hash of a URL. The best answer for the path may
// sign another one: builds are not always reproducible, and Nix may remember the URL from
// another cache.
func (r *Resolver) ForNAR(ctx context.Context, name nix.NARName, scope source.Scope) (*verify.Info, error) {
	k, err := r.recall(name.Store, scope)
	if k == nil && err == nil {
		k, err = r.find(ctx, question{name.Store, scope}, r.memory.add)
	}
	if err != nil {
		return nil, err
	}
	if k.Info.NarHash() == name.Nar {
		return k.Info, nil
	}
	ctx, cancel := r.deadline(ctx, infoDeadline)
	defer cancel()
	for _, s := range r.sources(scope) {
		info, err := s.ask(ctx, name.Store)
		switch {
		case err != nil:
			_ = r.reportWrongInfo(s.role, name.Store, err)
		case info.NarHash() == name.Nar && (!scope.Public() || info.SignedByAny(r.cfg.Share)):
			return info, nil
		}
	}
	return nil, fmt.Errorf("no narinfo of %s signs NAR hash %s: %w", name.Store, name.Nar.Nix32(), fs.ErrNotExist)
}

// FromUpstream returns the narinfo by which an upstream of this machine named its file of a
// NAR, nil if none does. What a URL or a peer says about files is not believed.
func (r *Resolver) FromUpstream(ctx context.Context, name nix.NARName, scope source.Scope) *verify.Info {
	if k, ok := r.memory.get(name.Store); ok && k.fromUpstream() && k.Info.NarHash() == name.Nar {
		return k.Info
	}
	ctx, cancel := r.deadline(ctx, infoDeadline)
	defer cancel()
	for _, s := range r.sources(scope) {
		if s.role != source.Disk && s.role != source.Upstream {
			continue
		}
		if info, err := s.ask(ctx, name.Store); err == nil && info.NarHash() == name.Nar {
			return info
		}
	}
	return nil
}

// asked is a source of narinfos and how it is asked.
type asked struct {
	role source.Role
	ask  askFunc
}

// sources lists those that may be asked for the scope, in order of cost.
func (r *Resolver) sources(scope source.Scope) (list []asked) {
	if s := r.cfg.Store; s != nil {
		list = append(list, asked{source.Store, ofScope(scope, s)})
	}
	if s := r.cfg.Disk; s != nil {
		list = append(list, asked{source.Disk, ofScope(scope, s)})
	}
	if s := r.cfg.Peers; s != nil && !scope.Local() {
		list = append(list, asked{source.Peer, s.Info})
	}
	if s := r.Upstreams(scope); s != nil && !s.Down() {
		list = append(list, asked{source.Upstream, s.Info})
	}
	return list
}

// Finding is what one source says of a path.
type Finding struct {
	Source source.Role   `json:"source"`
	Took   time.Duration `json:"took"`
	Info   *verify.Info  `json:"-"` // nil if it does not have the path
	Err    error         `json:"-"`
	Forms  []nix.Form    `json:"-"` // the forms that the cache holds, for source.Cache
}

// Why asks every source for a path, past all memory, and says what each answered.
func (r *Resolver) Why(ctx context.Context, h nix.StoreHash) []Finding {
	var findings []Finding
	var info *verify.Info
	list := r.sources(source.All)
	if u := r.cfg.Upstream; u != nil && u.Down() {
		list = append(list, asked{source.Upstream, u.Info})
	}
	for _, s := range list {
		start := time.Now()
		got, err := s.ask(ctx, h)
		findings = append(findings, Finding{Source: s.role, Took: time.Since(start), Info: got, Err: err})
		if info == nil {
			info = got
		}
	}
	if r.cfg.Cache == nil || info == nil {
		return findings
	}
	start := time.Now()
	f := Finding{Source: source.Cache, Info: info, Forms: r.cfg.Cache.Forms(info.NarHash())}
	if len(f.Forms) == 0 {
		f.Info, f.Err = nil, fs.ErrNotExist
	}
	f.Took = time.Since(start)
	return append(findings, f)
}
