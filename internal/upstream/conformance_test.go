package upstream

import (
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// TestViaChain: a question on behalf of another daemon names both.
func TestViaChain(t *testing.T) {
	p := nixtest.NewPath("hello", 1000)
	served := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: []nixtest.Key{key}})
	u := open(t, nil, served.URL())
	if _, err := u.Info(nix.ContextWithVia(t.Context(), "1.1 squid, nixp2p/other"), p.Hash()); err != nil {
		t.Fatal(err)
	}
	if got := served.Seen(nixtest.NarInfo)[0].Header.Get("Via"); got != "1.1 squid, nixp2p/other, nixp2p/self" {
		t.Errorf("Via: %s", got)
	}
}
