package transfer

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// report counts and logs wrong bytes, and passes the error on.
func (s *Server) report(kind source.EventKind, role source.Role, info *verify.Info, form nix.Form, err error) error {
	invalid := source.Invalid(err)
	if invalid == nil {
		return err
	}
	if role != source.Cache { // it counts what it drops
		s.cfg.Metrics.VerifyFailures.WithLabelValues(role.String(), string(invalid.Reason)).Inc()
	}
	s.cfg.Events.Send(source.Event{Kind: kind, Source: role, StorePath: info.StorePath().String(), Err: err})
	s.log.Warn("wrong bytes refused", "source", role.String(), "path", info.StorePath().Base(), "form", form.String(), "err", err)
	return err
}

// reportLocal reports wrong bytes to the source on this machine that sent all of them.
func (s *Server) reportLocal(src source.NARs, role source.Role, info *verify.Info, form nix.Form, err error) error {
	if invalid := source.Invalid(err); invalid != nil {
		_ = s.report(source.WrongBytes, role, info, form, err)
		src.Invalid(info, form, invalid)
		s.cfg.Resolver.Forget(info.StorePath().Hash())
	}
	return err
}

// reportUpstream reports wrong bytes to the upstreams that sent all of them.
func (s *Server) reportUpstream(info *verify.Info, form nix.Form, up source.Upstreams, err error) {
	if invalid := source.Invalid(err); invalid != nil {
		_ = s.report(source.WrongBytes, source.Upstream, info, form, err)
		s.cfg.Resolver.Distrust(info, form)
		if up != nil {
			up.Invalid(info, form, invalid)
		}
	}
}

// reportFile reports a file in the cache that has its FileHash and does not hold the signed
// NAR: the narinfo of an upstream that named it was wrong.
func (s *Server) reportFile(info *verify.Info, form nix.Form, err error) {
	if invalid := source.Invalid(err); invalid != nil && !s.cfg.Resolver.Distrusted(form) { // once
		_ = s.report(source.WrongFile, source.Upstream, info, form, err)
		s.cfg.Resolver.Distrust(info, form)
		if up := s.cfg.Resolver.Upstreams(source.All); up != nil {
			up.Invalid(info, form, invalid)
		}
	}
}

// endedEarly notes that a source ended in the middle and another one goes on.
func (s *Server) endedEarly(role source.Role, info *verify.Info, err error) {
	s.cfg.Metrics.Failovers.WithLabelValues(role.String()).Inc()
	s.cfg.Events.Send(source.Event{Kind: source.EndedEarly, Source: role, StorePath: info.StorePath().String(), Err: err})
	s.log.Debug("source ended early", "source", role.String(), "path", info.StorePath().Base(), "err", err)
}

// peersWereWrong notes that bytes of peers were wrong. After the second time only upstreams
// are asked for the NAR, for a while.
func (s *Server) peersWereWrong(info *verify.Info) {
	nar := info.NarHash()
	if s.wrongPeers.Has(nar) {
		s.noPeers.Add(nar, wrongFor)
	}
	s.wrongPeers.Add(nar, wrongFor)
}

// missing is the error if no source has a NAR: absence if none failed.
func missing(errs []error) error {
	if len(errs) == 0 {
		return fmt.Errorf("no source has it: %w", fs.ErrNotExist)
	}
	return fmt.Errorf("%w: %w", resolve.ErrUnavailable, errors.Join(errs...))
}
