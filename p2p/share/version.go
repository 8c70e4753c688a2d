package share

import (
	"context"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

var _ source.Versions = (*Holder)(nil)

// Version is part of source.Versions.
func (h *Holder) Version(ctx context.Context, nar nix.NarHash) (info *verify.Info, packed nix.Compression, err error) {
	r, ok := h.set.byNAR(nar)
	if !ok {
		return nil, "", errAbsent
	}
	if packed, ok = h.packed(r); !ok {
		return nil, "", errAbsent
	}
	info, err = h.info(ctx, r)
	return info, packed, err
}

// packed returns what the raw NAR has to be decoded from. It is not ok if it is not here as a whole.
func (h *Holder) packed(r record) (c nix.Compression, ok bool) {
	if r.where&inStore != 0 {
		return nix.None, true
	}
	if h.cfg.Cache == nil {
		return "", false
	}
	whole := h.cfg.Cache.Sizes(r.path.Nar)
	switch {
	case len(whole) == 0:
		return "", false
	case whole[0].Form.IsRaw():
		return nix.None, true
	}
	return whole[0].Form.Compression, true
}

// Tree is part of source.Versions.
func (h *Holder) Tree(ctx context.Context, info *verify.Info) (source.Tree, error) {
	r, ok := h.set.byNAR(info.NarHash())
	switch {
	case !ok:
		return nil, errAbsent
	case r.where&inStore != 0:
		return h.cfg.Store.Tree(ctx, info)
	case h.cfg.Cache != nil:
		return h.cfg.Cache.Tree(ctx, info)
	}
	return nil, errAbsent
}

// Invalid is part of source.Versions.
func (h *Holder) Invalid(info *verify.Info, form nix.Form, err error) {
	r, ok := h.set.byNAR(info.NarHash())
	switch {
	case !ok:
	case r.where&inStore != 0:
		h.cfg.Store.Invalid(info, form, err)
	case h.cfg.Cache != nil:
		h.cfg.Cache.Invalid(info, form, err)
	}
}
