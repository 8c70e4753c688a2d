package upstream

import (
	"fmt"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// refusedNoteFor is how long it is said that paths of a cache were refused.
const refusedNoteFor = time.Hour

// refuseUnsigned notes a narinfo that no trusted key signed. That is nothing wrong: the key may not be
// configured, and many caches have unsigned paths beside others.
func refuseUnsigned(u *shared, m *mirror, h nix.StoreHash) error {
	u.metrics.VerifyFailures.WithLabelValues(source.Upstream.String(), string(verify.ReasonUnsigned)).Inc()
	n, signed := m.unsigned.Add(1), m.signed.Load()
	c := source.Condition{
		Part: source.PartUpstream, Note: signed > 0,
		Text: fmt.Sprintf("%s has paths that no trusted key signed: %d of %d narinfos were refused", m.name, n, n+signed),
		Hint: "if its paths are to be served, add its public key with --trusted-public-key",
	}
	if signed == 0 {
		c.Text = fmt.Sprintf("%s has sent no path that a trusted key signed: %d narinfos were refused", m.name, n)
	}
	return noteRefused(u, m, h, "unsigned", c, "no trusted key signed it")
}

// refuseEncoding notes a narinfo whose file cannot be decoded. Nix may be able to: it gets no
// narinfo from here and asks elsewhere.
func refuseEncoding(u *shared, m *mirror, h nix.StoreHash, c nix.Compression) error {
	why := fmt.Sprintf("this node cannot decode %q", string(c))
	return noteRefused(u, m, h, "encoding", source.Condition{
		Part: source.PartUpstream, Text: fmt.Sprintf("%s has paths in compression %q, which this node cannot decode", m.name, string(c)),
		Hint: "Nix asks its other substituters for them; list this cache there too",
	}, why)
}

func noteRefused(u *shared, m *mirror, h nix.StoreHash, what string, c source.Condition, why string) error {
	u.conditions.SetFor(what+"/"+m.name, c, refusedNoteFor)
	if u.logOnce(m, what) {
		u.log.Info("narinfo from upstream is refused", "upstream", m.name, "store_hash", h.String(), "why", why)
	}
	return &source.RefusedError{Why: why}
}
