package share

import (
	"fmt"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// TestPages: the list has each shared path once, the newest first, and no path that a question gets
// no answer for.
func TestPages(t *testing.T) {
	h := New(Config{ShareKeys: []string{key.Name}})
	path := func(i int) Path {
		return Path{Store: nix.StoreHash{byte(i >> 8), byte(i)}, Nar: nix.NarHash{byte(i >> 8), byte(i)}, Size: int64(i + 1)}
	}
	const paths = 3000
	for i := range paths {
		h.set.add(path(i), inStore, nil)
	}
	for i := 0; i < paths; i += 3 {
		h.set.remove(path(i).Store, inStore)
	}
	h.set.add(path(6), inCache, nil) // it came back
	var all []source.SharedPath
	page := h.Page(0)
	if len(page.Paths) != wire.NewestPage || page.Paths[0] != path(6) {
		t.Fatalf("%d paths, the first %v", len(page.Paths), page.Paths[0])
	}
	for all = page.Paths; page.Next != 0; all = append(all, page.Paths...) {
		before := page.Next
		if page = h.Page(before); len(page.Paths) > wire.MaxPage || page.First >= before {
			t.Fatalf("%d paths from %d, before %d", len(page.Paths), page.First, before)
		}
		if _, err := wire.ParsePage(wire.AppendPage(nil, page)); err != nil {
			t.Fatal(err)
		}
	}
	if len(all) != paths/3*2+1 || h.Len() != len(all) {
		t.Fatalf("%d of %d paths", len(all), h.Len())
	}
	for i, p := range all[1:] {
		if want := path(paths - 1 - i/2*3 - i%2); p != want {
			t.Fatalf("path %d is %v, want %v", i, p, want)
		}
	}
	for i := range 20 * paths { // what comes and goes leaves nothing behind
		h.set.add(path(i%paths), inCache, nil)
		h.set.remove(path(i%paths).Store, inCache)
	}
	if n := len(h.set.order); n > 2*(h.Len()+wire.MaxPage)+1 {
		t.Errorf("%d numbers of %d paths", n, h.Len())
	}
}

// TestPagePrivate: what no share key signed is not listed, wherever it is.
func TestPagePrivate(t *testing.T) {
	public, private := nixtest.NewPath("public", 100), nixtest.NewPath("private", 100)
	h := New(Config{ShareKeys: []string{key.Name}})
	h.Downloading(public.Info(t, key))
	h.Downloading(private.Info(t, home))
	h.Known(private.Info(t, home))
	if got := fmt.Sprint(h.Page(0).Paths); got != fmt.Sprint([]source.SharedPath{{Store: public.Hash(), Nar: public.NarHash(), Size: int64(len(public.NAR))}}) {
		t.Errorf("listed: %v", got)
	}
}
