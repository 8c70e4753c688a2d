package p2p

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/verify"
)

// evil is a node that says it shares the paths, and answers requests in its own way.
func evil(t testing.TB, answer func(req *http.Request, s network.Stream), change func(*Config), paths ...nixtest.Path) *testNode {
	t.Helper()
	n := start(t, newHolder(t, paths...), change)
	(*n.host.Load()).SetStreamHandler(httpProtocol, func(s network.Stream) {
		defer s.Reset()
		r := bufio.NewReader(s)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			answer(req, s)
		}
	})
	return n
}

// raw answers every request with the same bytes, then ends the stream.
func raw(b []byte) func(*http.Request, network.Stream) {
	return func(_ *http.Request, s network.Stream) {
		_, _ = s.Write(b)
		_ = s.CloseWrite()
		_ = s.SetReadDeadline(time.Now())
	}
}

func response(header string, body []byte) []byte {
	return append([]byte("HTTP/1.1 200 OK\r\n"+header+"\r\n\r\n"), body...)
}

// proven fetches a NAR as the resolver does, and convicts as it does.
func proven(t testing.TB, n *testNode, info *verify.Info) error {
	t.Helper()
	claim, err := n.NAR(t.Context(), info, nix.Raw, 0)
	if err != nil {
		return err
	}
	defer claim.Body.Close()
	p := verify.NewProof(info.Want(nix.Raw, 0))
	_, err = io.Copy(struct{ io.Writer }{p}, claim.Body)
	if err == nil {
		err = p.Check()
	}
	var lie *verify.InvalidError
	if errors.As(err, &lie) {
		n.Convict(info, nix.Raw, lie)
	}
	return err
}

func liar(n *testNode, of *testNode) bool {
	for _, p := range n.Peers() {
		if p.ID == of.ID() {
			return strings.HasPrefix(p.Standing, "liar: ")
		}
	}
	return false
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// TestLiars has each kind alone first: the build goes on without it, and who lied is not asked
// again.
func TestLiars(t *testing.T) {
	path := nixtest.NewPath("wanted", 2<<20)
	another := nixtest.NewPath("another", 2<<20)
	size := len(path.NAR)
	length := func(n int) string { return fmt.Sprintf("Content-Length: %d", n) }
	for _, c := range []struct {
		name   string
		answer []byte
		lied   bool // else only useless
	}{
		{"wrong first byte", response(length(size), flipped(path.NAR, 0)), true},
		{"wrong middle byte", response(length(size), flipped(path.NAR, size/2)), true},
		{"wrong last byte", response(length(size), flipped(path.NAR, size-1)), true},
		{"another NAR", response(length(size), another.NAR), true},
		{"long", response(length(size+1), append(bytes.Clone(path.NAR), 0)), true},
		{"short, as it says", response(length(size-1), path.NAR[:size-1]), true},
		{"short, as it does not say", response(length(size), path.NAR[:size-1]), false},
		{"longer than it says", response(length(size), append(bytes.Clone(path.NAR), make([]byte, 1<<20)...)), false},
		{"huge header", append([]byte("HTTP/1.1 200 OK\r\n"), bytes.Repeat([]byte("X: y\r\n"), 1<<18)...), false},
		{"no length", response("Connection: close", path.NAR), false},
		{"garbage", bytes.Repeat([]byte("x"), 1<<16), false},
		{"nothing", nil, false},
		{"compressed garbage", response(length(size)+"\r\nContent-Encoding: zstd\r\nNixp2p-Size: "+fmt.Sprint(size), path.NAR), false},
		{"compressed, size unknown", response("Connection: close\r\nContent-Encoding: zstd", path.NAR), false},
		{"a redirect", []byte("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n"), false},
		{"endless interim answers", bytes.Repeat([]byte("HTTP/1.1 100 Continue\r\n\r\n"), 1<<16), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := evil(t, raw(c.answer), nil, path)
			n := join(t, nil, nil, bad)
			wait(t, "the liar's inventory", func() bool { return n.Positive(path.Hash()) })
			info := path.Info(t, shareKey)
			err := proven(t, n, info)
			good := c.name == "longer than it says"
			if (err == nil) != good {
				t.Errorf("alone: %v", err)
			}
			if got := liar(n, bad); got != c.lied {
				t.Errorf("remembered as a liar: %v, want %v (%+v)", got, c.lied, n.Peers())
			}
			if !c.lied {
				return
			}
			if _, err := n.NAR(t.Context(), info, nix.Raw, 0); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("asked again: %v", err)
			}
			if _, err := n.Info(t.Context(), path.Hash()); err == nil {
				t.Error("asked for a narinfo again")
			}
		})
	}
}

// TestLiarBesideGood has a good peer beside: it is asked in the end, whoever comes first.
func TestLiarBesideGood(t *testing.T) {
	path := nixtest.NewPath("wanted", 2<<20)
	bad := evil(t, raw([]byte("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")), nil, path)
	silent := evil(t, func(*http.Request, network.Stream) {
		<-t.Context().Done()
	}, nil, path)
	good := start(t, newHolder(t, path), nil)
	n := join(t, nil, nil, bad, silent, good)
	wait(t, "all inventories", func() bool {
		told := 0
		for _, p := range n.Peers() {
			told += p.Paths
		}
		return told == 3
	})
	for range 3 {
		if _, err := n.Info(t.Context(), path.Hash()); err != nil {
			t.Error(err)
		}
		if err := proven(t, n, path.Info(t, shareKey)); err != nil {
			t.Error(err)
		}
	}
	if liar(n, bad) || liar(n, silent) {
		t.Error("slowness or failure is held against somebody")
	}
}

func TestWrongNarinfos(t *testing.T) {
	path, other := nixtest.NewPath("wanted", 100), nixtest.NewPath("other", 100)
	stranger := nixtest.NewKey("stranger-1")
	forged := path.Signed(shareKey)
	forged.NarSize++
	unsigned := path.NarInfo()
	for _, c := range []struct {
		name string
		text []byte
		lied bool
	}{
		{"of another path", other.Signed(shareKey).AppendText(nil), true},
		{"forged", forged.AppendText(nil), true},
		{"garbage", []byte("StorePath: x\n"), true},
		{"unsigned", unsigned.AppendText(nil), false},
		{"signed by a key that is not trusted here", path.Signed(stranger).AppendText(nil), false},
		{"endless", bytes.Repeat([]byte("Sig: x\n"), 1<<20), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := evil(t, raw(response(fmt.Sprintf("Content-Length: %d", len(c.text)), c.text)), nil, path)
			n := join(t, nil, nil, bad)
			wait(t, "the inventory", func() bool { return n.Positive(path.Hash()) })
			_, err := n.Info(t.Context(), path.Hash())
			var lie *verify.InvalidError
			if errors.As(err, &lie) != c.lied || err == nil {
				t.Errorf("%v", err)
			}
			if liar(n, bad) != c.lied {
				t.Errorf("remembered as a liar: %v", liar(n, bad))
			}
		})
	}
}

// TestOnlyRaw: what no key signed is not believed from a peer.
func TestOnlyRaw(t *testing.T) {
	path := nixtest.NewPath("wanted", 100)
	ni := path.Signed(shareKey)
	ni.Compression, ni.FileHash, ni.FileSize, ni.URL = nix.XZ, nix.FileHash{1}, 77, "http://example.org/x.nar.xz"
	text := ni.AppendText(nil)
	bad := evil(t, raw(response(fmt.Sprintf("Content-Length: %d", len(text)), text)), nil, path)
	n := join(t, nil, nil, bad)
	wait(t, "the inventory", func() bool { return n.Positive(path.Hash()) })
	info, err := n.Info(t.Context(), path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := info.FileForm(); ok || strings.Contains(string(info.Offer(nix.Raw)), "example.org") {
		t.Errorf("%s", info.Text())
	}
}

// TestFlaky: the first peer dies in the middle, the second goes on at the same byte.
func TestFlaky(t *testing.T) {
	path := nixtest.NewPath("wanted", 8<<20)
	h := newHolder(t, path)
	h.body = func(b []byte, off int64) io.ReadCloser {
		end := min(off+3<<20, int64(len(b))-1)
		return io.NopCloser(io.MultiReader(bytes.NewReader(b[off:end]), failing{}))
	}
	flaky := start(t, h, nil)
	good := start(t, newHolder(t, path), nil)
	for range 4 {
		n := join(t, nil, nil, flaky, good)
		wait(t, "both inventories", func() bool {
			p := n.Peers()
			return len(p) == 2 && p[0].Paths+p[1].Paths == 2
		})
		got, err := fetched(t, n, path.Info(t, shareKey), nix.Raw, 0)
		if err != nil || !bytes.Equal(got, path.NAR) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		n.stop()
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("disk on fire") }

// TestStall: a peer stops sending in the middle and keeps the stream.
func TestStall(t *testing.T) {
	t.Parallel()
	path := nixtest.NewPath("wanted", 4<<20)
	h := newHolder(t, path)
	h.body = func(b []byte, off int64) io.ReadCloser {
		return &blocking{r: bytes.NewReader(b[off : len(b)-1]), done: t.Context().Done()}
	}
	stalls := start(t, h, nil)
	n := join(t, nil, nil, stalls)
	wait(t, "the inventory", func() bool { return n.Positive(path.Hash()) })
	claim, err := n.NAR(t.Context(), path.Info(t, shareKey), nix.Raw, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Body.Close()
	if _, err := io.ReadFull(claim.Body, make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	// The second peer comes only now.
	good := start(t, newHolder(t, path), nil)
	n.found(true, "static", good.Addrs())
	began := time.Now()
	rest, err := io.ReadAll(claim.Body)
	if err != nil || !bytes.Equal(rest, path.NAR[2<<20:]) {
		t.Errorf("%d bytes, %v", len(rest), err)
	}
	if d := time.Since(began); d > stallTime+2*time.Second {
		t.Errorf("took %v", d)
	}
	// Two contributed: nobody is convicted when the bytes turn out wrong, both are avoided.
	n.Convict(path.Info(t, shareKey), nix.Raw, &verify.InvalidError{Reason: verify.ReasonHash, Err: errors.New("wrong")})
	if liar(n, stalls) || liar(n, good) {
		t.Error("one of two contributors is convicted")
	}
	if _, err := n.NAR(t.Context(), path.Info(t, shareKey), nix.Raw, 0); err == nil {
		t.Error("contributors are not avoided")
	}
}

// blocking blocks at its end until done.
type blocking struct {
	r    io.Reader
	done <-chan struct{}
}

func (b *blocking) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if errors.Is(err, io.EOF) {
		<-b.done
	}
	return n, err
}

func (b *blocking) Close() error { return nil }

// TestTooManyFalsePositives: who says yes and has nothing is not listened to.
func TestTooManyFalsePositives(t *testing.T) {
	var paths []nixtest.Path
	for i := range mutedOf {
		paths = append(paths, nixtest.NewPath(fmt.Sprintf("p%d", i), 10))
	}
	bad := evil(t, raw([]byte("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")), nil, paths...)
	n := join(t, nil, nil, bad)
	wait(t, "the inventory", func() bool { return n.Positive(paths[0].Hash()) })
	for _, p := range paths {
		if _, err := n.Info(t.Context(), p.Hash()); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if n.Positive(paths[0].Hash()) || n.Peers()[0].Standing != "muted" {
		t.Errorf("still listened to: %+v", n.Peers())
	}
}
