package p2p

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/verify"
)

// TestLiarAmongContributors: one peer gives wrong bytes and dies, another one gives the rest.
// Both are avoided, until the right bytes pass by: then the liar is known, the other cleared.
func TestLiarAmongContributors(t *testing.T) {
	path := nixtest.NewPath("wanted", 3<<20)
	for _, at := range []int{0, 1<<20 - 1} {
		bad := evil(t, func(_ *http.Request, s network.Stream) {
			_, _ = s.Write(response(fmt.Sprintf("Content-Length: %d", len(path.NAR)), flipped(path.NAR, at)[:1<<20]))
			_ = s.CloseWrite()
		}, nil, path)
		good := start(t, newHolder(t, path), nil)
		n := join(t, nil, nil, bad)
		wait(t, "the inventory", func() bool { return n.Positive(path.Hash()) })
		info := path.Info(t, shareKey)
		claim, err := n.NAR(t.Context(), info, nix.Raw, 0) // of the bad one, who is alone
		if err != nil {
			t.Fatal(err)
		}
		n.found(true, "static", good.Addrs())
		wait(t, "the good one", func() bool { return len(n.Holders(path.Hash())) == 2 })
		proof := verify.NewProof(info.Want(nix.Raw, 0))
		_, err = io.Copy(struct{ io.Writer }{proof}, claim.Body)
		_ = claim.Body.Close()
		if err == nil {
			err = proof.Check()
		}
		var lie *verify.InvalidError
		if !errors.As(err, &lie) {
			t.Fatal(err)
		}
		n.Convict(info, nix.Raw, lie)
		if liar(n, bad) || liar(n, good) {
			t.Error("convicted without evidence")
		}
		if _, err := n.NAR(t.Context(), info, nix.Raw, 0); err == nil {
			t.Error("the contributors are not avoided")
		}
		if w, _ := n.Right(info, nix.Form{File: nix.FileHash{1}, Compression: nix.XZ}); w != nil {
			t.Error("another form is compared")
		}
		copies, proven := n.Right(info, nix.Raw)
		if copies == nil {
			t.Fatal("nothing is compared")
		}
		for rest := path.NAR; len(rest) > 0; rest = rest[min(len(rest), 100_000):] {
			_, _ = copies.Write(rest[:min(len(rest), 100_000)])
		}
		proven()
		if !liar(n, bad) || liar(n, good) {
			t.Errorf("byte %d: %+v", at, n.Peers())
		}
		if got, err := fetched(t, n, info, nix.Raw, 0); err != nil || !bytes.Equal(got, path.NAR) {
			t.Errorf("the good one is not asked again: %d bytes, %v", len(got), err)
		}
		if w, _ := n.Right(info, nix.Raw); w != nil {
			t.Error("still compared")
		}
	}
}
