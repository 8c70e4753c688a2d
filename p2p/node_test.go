package p2p

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/source"
)

// holds reports whether a condition of this part holds.
func holds(c *source.Conditions, part source.Part) bool {
	for _, x := range c.List() {
		if x.Part == part {
			return true
		}
	}
	return false
}

// TestTwins: machines that were made from one image have the same identity. Whoever is told of whom, and
// whenever they start, they notice, take identities of their own and become peers.
func TestTwins(t *testing.T) {
	image := t.TempDir()
	made := start(t, nil, func(c *Config) { c.StateDir = image })
	file, err := os.ReadFile(filepath.Join(image, "identity.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		// meet starts machines, those that are not said to be fresh from the image.
		meet func(s *imageSite) []*Node
	}{
		{"the second knows the first", func(s *imageSite) []*Node { a := s.clone(); return []*Node{a, s.clone(a)} }},
		{"the first knows the second", func(s *imageSite) []*Node { return []*Node{s.cloneKnowing(s.port), s.cloneAt(s.port)} }},
		{"each knows the other", func(s *imageSite) []*Node { a := s.cloneKnowing(s.port); return []*Node{a, s.cloneAt(s.port, a)} }},
		{"three, one after the other", func(s *imageSite) []*Node { a, b := s.clone(), s.clone(); return []*Node{a, b, s.clone(a, b)} }},
		{"a fresh one knows both", func(s *imageSite) []*Node { a, b := s.clone(), s.clone(); return []*Node{a, b, s.fresh(a, b)} }},
		{"both know a fresh one", func(s *imageSite) []*Node { f := s.fresh(); return []*Node{f, s.clone(f), s.clone(f)} }},
		{"three know a fresh one", func(s *imageSite) []*Node { f := s.fresh(); return []*Node{f, s.clone(f), s.clone(f), s.clone(f)} }},
		{"each knows a fresh one of two", func(s *imageSite) []*Node {
			f := s.fresh()
			g := s.fresh(f)
			return []*Node{f, g, s.clone(f), s.clone(g)}
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := &imageSite{t: t, file: file, id: made.ID(), port: freePort(t)}
			all := c.meet(s)
			await(t, "all are peers", func() bool {
				for _, n := range all {
					if len(n.Peers()) != len(all)-1 {
						return false
					}
				}
				return true
			})
			seen := map[string]bool{}
			for _, n := range all {
				if seen[n.ID()] {
					t.Error("two have one identity")
				}
				seen[n.ID()] = true
			}
			if !holds(&s.board, source.PartIdentity) {
				t.Error("nobody says that an identity was replaced")
			}
		})
	}
}

// imageSite is a site of machines that were made from one image.
type imageSite struct {
	t     *testing.T
	file  []byte // the identity in the image
	id    string
	port  int // a free one
	board source.Conditions
}

func (s *imageSite) fresh(others ...*Node) *Node { return start(s.t, nil, nil, others...) }

// clone starts one at a port that it keeps when it takes a new identity.
func (s *imageSite) clone(others ...*Node) *Node { return s.cloneAt(freePort(s.t), others...) }

func (s *imageSite) cloneAt(port int, others ...*Node) *Node {
	return start(s.t, nil, s.fromImage(func(c *Config) { c.Listen = []string{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)} }), others...)
}

// cloneKnowing starts one that knows a port behind which nobody is yet.
func (s *imageSite) cloneKnowing(port int) *Node {
	return start(s.t, nil, s.fromImage(func(c *Config) { c.Bootstrap = []string{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)} }))
}

func (s *imageSite) fromImage(edit func(*Config)) func(*Config) {
	return func(c *Config) {
		c.StateDir, c.Conditions = s.t.TempDir(), &s.board
		if err := os.WriteFile(filepath.Join(c.StateDir, "identity.key"), s.file, 0o600); err != nil {
			s.t.Fatal(err)
		}
		edit(c)
	}
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestIdentity: a node starts whatever is in the place of its key, keeps a key that is good, and
// says if it cannot keep one.
func TestIdentity(t *testing.T) {
	const elsewhere, here = "made elsewhere", "made here"
	for _, c := range []struct {
		what     string
		prepare  func(dir, path string) error
		same     bool   // the second start has the identity of the first
		said     string // in the log of the first start
		degraded bool
	}{
		{what: "none", same: true},
		{what: "empty", prepare: func(_, p string) error { return os.WriteFile(p, nil, 0o600) }, same: true, said: "is damaged"},
		{what: "noise", prepare: func(_, p string) error { return os.WriteFile(p, bytes.Repeat([]byte{0xa5}, 99), 0o600) }, same: true, said: "is damaged"},
		{what: "a directory", prepare: func(_, p string) error { return os.MkdirAll(filepath.Join(p, "x"), 0o700) }, said: "cannot be kept", degraded: true},
		{what: "no directory", prepare: func(d, _ string) error { return os.Remove(d) }, said: "cannot be kept", degraded: true},
		{what: "of another machine", prepare: func(_, p string) error {
			i := &identity{path: p, machine: elsewhere, log: slog.New(slog.DiscardHandler)}
			return i.load()
		}, same: true, said: "made on another machine"},
		{what: "of this machine", prepare: func(_, p string) error {
			i := &identity{path: p, machine: here, log: slog.New(slog.DiscardHandler)}
			return i.load()
		}, same: true},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			path := filepath.Join(dir, "identity.key")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if c.prepare != nil {
				if err := c.prepare(dir, path); err != nil {
					t.Fatal(err)
				}
			}
			var keys [2]string
			for k := range keys {
				var log bytes.Buffer
				i := &identity{path: path, machine: here, log: slog.New(slog.NewTextHandler(&log, nil)), conditions: new(source.Conditions)}
				if err := i.load(); err != nil {
					t.Fatal(err)
				}
				raw, err := i.key.Raw()
				if err != nil {
					t.Fatal(err)
				}
				keys[k] = string(raw)
				if k == 0 && !strings.Contains(log.String(), c.said) || k == 1 && c.same && log.Len() > 0 {
					t.Errorf("start %d: %s", k, log.String())
				}
				if degraded := len(i.conditions.List()) > 0 && !i.conditions.List()[0].Note; degraded != (c.degraded && k == 0) {
					t.Errorf("start %d: degraded %v", k, degraded)
				}
				if k == 0 && c.degraded { // the cause goes, and the key is kept
					_ = os.RemoveAll(path)
					_ = os.MkdirAll(dir, 0o700)
					i.keep()
					if len(i.conditions.List()) > 0 {
						t.Errorf("still %v", i.conditions.List())
					}
				}
			}
			if (keys[0] == keys[1]) != (c.same || c.degraded) {
				t.Errorf("the same identity: %v", keys[0] == keys[1])
			}
		})
	}
}

// TestPortTaken: a node whose port is taken has the peers that it can reach itself, and listens as
// soon as the port is free.
func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	other := start(t, nil, nil)
	var board source.Conditions
	n := start(t, nil, func(c *Config) {
		c.Listen, c.Conditions = []string{"/ip4/127.0.0.1/tcp/" + port}, &board
	}, other)
	await(t, "a peer", func() bool { return len(n.Peers()) == 1 })
	if !holds(&board, source.PartPeerPort) || len(n.Addrs()) != 0 {
		t.Errorf("%v, %v", board.List(), n.Addrs())
	}
	_ = l.Close()
	await(t, "the port", func() bool { return len(n.Addrs()) == 1 && !holds(&board, source.PartPeerPort) })
}

// TestSwarmKeyComes: a node whose secret cannot be read has no peers until it can.
func TestSwarmKeyComes(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(name, []byte("no key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var board source.Conditions
	n, err := New(configOf(t, func(c *Config) { c.SwarmKeyFile, c.Conditions = name, &board }))
	if err != nil {
		t.Fatal(err)
	}
	run(t, n)
	await(t, "the reason", func() bool { return holds(&board, source.PartPeers) })
	if len(n.Addrs()) != 0 {
		t.Error("it listens without its secret")
	}
	if err := os.WriteFile(name, []byte(NewSwarmKey()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	<-n.Ready()
	if len(n.Addrs()) != 1 || holds(&board, source.PartPeers) {
		t.Errorf("%v, %v", n.Addrs(), board.List())
	}
}
