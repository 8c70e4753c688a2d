package main

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/internal/source"
)

// part is a part of the daemon that is not needed to answer Nix, and how it is taken away.
type part struct {
	what string
	// args and before prepare the start: dir holds state and cache. Broken and mended act while
	// the daemon runs; mended may be nil if nothing is to be mended.
	args           func(b *bench) []string
	before         func(b *bench) error
	broken, mended func(b *bench) error
	// says is the part that status names while it is broken, "" if nothing is lost by it.
	says source.Part
	log  string // a word of the one warning in the log; "": there is none
}

// bench is one daemon whose parts are taken away.
type bench struct {
	*process
	held []func() // what ends with the test
}

func (b *bench) state() string { return b.dir + "/state" }
func (b *bench) cache() string { return b.dir + "/cache" }

// occupy takes an address until the test ends or the returned function is called.
func (b *bench) occupy(network, addr string) (at string, free func(), err error) {
	if strings.HasPrefix(network, "udp") {
		c, err := net.ListenPacket(network, addr)
		if err != nil {
			return "", nil, err
		}
		return c.LocalAddr().String(), func() { _ = c.Close() }, nil
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return "", nil, err
	}
	return l.Addr().String(), func() { _ = l.Close() }, nil
}

// parts is the table of docs/faults.md, "Parts of the daemon".
func parts(t *testing.T) []part {
	// Ports that are taken before the daemon starts.
	taken := func(network string) (addr string, free func()) {
		b := &bench{}
		addr, free, err := b.occupy(network, "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(free)
		return addr, free
	}
	peerPort, freePeer := taken("tcp4")
	_, port, _ := net.SplitHostPort(peerPort)
	secret := filepath.Join(t.TempDir(), "swarm.key")
	write := func(name, text string) error { return os.WriteFile(name, []byte(text), 0o600) }
	noise := strings.Repeat("noise \xff\x00", 4096)
	peers := func(*bench) []string {
		return []string{"--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--mdns=false"}
	}
	return []part{
		{what: "identity empty", args: peers, before: func(b *bench) error { return write(b.state()+"/identity.key", "") }, log: "identity is damaged"},
		{what: "identity is noise", args: peers, before: func(b *bench) error { return write(b.state()+"/identity.key", noise) }, log: "identity is damaged"},
		{what: "identity cannot be read", args: peers, before: func(b *bench) error { return os.MkdirAll(b.state()+"/identity.key/x", 0o700) },
			mended: func(b *bench) error { return os.RemoveAll(b.state() + "/identity.key") }, says: source.PartIdentity, log: "identity cannot be kept"},
		{what: "peers' port taken", args: func(*bench) []string { return []string{"--mdns=false", "--p2p-listen", "/ip4/127.0.0.1/tcp/" + port} },
			mended: func(*bench) error { freePeer(); return nil }, says: source.PartPeerPort, log: "cannot listen for peers"},
		{what: "swarm key missing", args: func(b *bench) []string { return append(peers(b), "--swarm-key-file", secret) },
			before: func(*bench) error { return write(secret, "not a key\n") },
			mended: func(*bench) error { out, _, _ := command(t, "swarm-key"); return write(secret, out) }, says: source.PartPeers, log: "swarm key"},
		{what: "state database is noise", before: func(b *bench) error { return write(b.state()+"/state.db", noise) }, log: "state database is damaged"},
		{what: "state directory removed", broken: func(b *bench) error { return os.RemoveAll(b.state()) }},
		{what: "state directory is a file", before: func(b *bench) error { return errors.Join(os.RemoveAll(b.state()), write(b.state(), "")) },
			mended: func(b *bench) error { return os.Remove(b.state()) }, says: source.PartState, log: "state database cannot be written"},
		{what: "cache directory removed", broken: func(b *bench) error { return os.RemoveAll(b.cache()) }},
		{what: "cache directory is a file", before: func(b *bench) error { return errors.Join(os.RemoveAll(b.cache()), write(b.cache(), "")) },
			mended: func(b *bench) error { return os.Remove(b.cache()) }, says: source.PartCache, log: "NAR cache"},
		{what: "cache directory replaced by a file", broken: func(b *bench) error { return errors.Join(os.RemoveAll(b.cache()), write(b.cache(), "")) },
			mended: func(b *bench) error { return os.Remove(b.cache()) }, says: source.PartCache, log: "NAR cache"},
		{what: "Nix database missing", args: store, broken: func(*bench) error { return nil }},
		{what: "Nix database is noise", args: store, before: func(b *bench) error { return write(database(b), noise) },
			mended: func(b *bench) error { return os.Remove(database(b)) }, log: "store database cannot be read"},
		{what: "Nix database of a schema to come", args: store, before: func(b *bench) error {
			db, err := sql.Open("sqlite", database(b)) // the driver that the doctor brings
			if err != nil {
				return err
			}
			_, err = db.ExecContext(t.Context(), "create table Paths2(id, p)")
			return errors.Join(err, db.Close())
		}, log: "store database cannot be read"},
		{what: "Nix database replaced by a directory", args: store, broken: func(b *bench) error { return os.Mkdir(database(b), 0o700) },
			mended: func(b *bench) error { return os.Remove(database(b)) }},
		// Without any nobody can be asked: what was seen is shown for a minute.
		{what: "no descriptors", args: peers, broken: func(b *bench) error {
			err := b.limit(8)
			within(t, 30*time.Second, func() bool { return b.warnings("no file descriptors are left") > 0 })
			return errors.Join(err, b.limit(1024))
		}, says: source.PartProcess, log: "no file descriptors are left"},
	}
}

func store(b *bench) []string { return []string{"--store-root", b.dir + "/root"} }

func database(b *bench) string { return b.dir + "/root/nix/var/nix/db/db.sqlite" }

// limit sets how many descriptors the daemon may have from now on.
func (b *bench) limit(n int) error {
	out, err := exec.Command("prlimit", fmt.Sprintf("--nofile=%d:", n), "--pid", fmt.Sprint(b.cmd.Process.Pid)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// TestParts takes away each part that is not needed to answer Nix: substituting goes on, the log
// says it once, status says it as long as it lasts, and the part comes back by itself. What Nix gets
// from the cache alone it gets through the daemon meanwhile.
func TestParts(t *testing.T) {
	t.Parallel()
	key := nixtest.NewKey("cache.example.org-1")
	var paths []nixtest.Path
	for i := range 4 {
		paths = append(paths, nixtest.NewPath(fmt.Sprint("part", i), 1<<20))
	}
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: paths, Keys: []nixtest.Key{key}, Compression: nix.None})
	nixAlone, _ := realnix.LookPath(t.Context()) // nil where there is none
	for _, c := range parts(t) {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			b := &bench{process: &process{t: t, dir: t.TempDir()}}
			for _, dir := range []string{b.state(), b.cache(), filepath.Dir(database(b))} {
				if err := os.MkdirAll(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			b.args = []string{"--upstream", up.URL(), "--trusted-public-key", key.Public(), "--share-key", key.Name, "--log-level", "info"}
			if c.args == nil {
				b.args = append(b.args, "--p2p=false", "--store-root", t.TempDir())
			} else {
				b.args = append(b.args, c.args(b)...)
			}
			do := func(f func(*bench) error) {
				t.Helper()
				if f == nil {
					return
				}
				if err := f(b); err != nil {
					t.Fatal(err)
				}
			}
			do(c.before)
			b.start()
			t.Cleanup(b.stop)
			b.substitutes(paths[0])
			do(c.broken)
			eventually(t, func() bool { return b.names(c.says) })
			b.substitutes(paths[1])
			b.asNix(t, nixAlone, key, up.URL(), paths[3])
			do(c.mended)
			if c.mended != nil && c.says != "" {
				within(t, 90*time.Second, func() bool { return !b.names(c.says) })
			}
			b.substitutes(paths[2])
			if n := b.warnings(c.log); c.log != "" && n != 1 {
				t.Errorf("%d warnings with %q:\n%s", n, c.log, b.logText())
			}
		})
	}
}

// asNix compares what Nix gets from the cache alone, in this row, with what it gets through the daemon. If n is
// nil, there is no Nix here.
func (b *bench) asNix(t *testing.T, n *realnix.Nix, key nixtest.Key, cache string, p nixtest.Path) {
	t.Helper()
	if n == nil {
		return
	}
	alone := taken(t, n.TempClient(t, key.Public()), cache, []nixtest.Path{p})
	through := taken(t, n.TempClient(t, key.Public()), b.url, []nixtest.Path{p})
	if len(alone) != 1 || len(through) != 1 {
		t.Errorf("Nix alone gets %v, and through the daemon %v", alone, through)
	}
}

// within waits for something that the daemon tries again at most every 30 s.
func within(t testing.TB, limit time.Duration, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !is(); {
		if time.Now().After(deadline) {
			t.Fatal("not in time")
		}
		<-time.After(100 * time.Millisecond)
	}
}

// substitutes asks as Nix does, and wants the path. Where descriptors are short, it takes a while.
func (b *bench) substitutes(p nixtest.Path) {
	b.t.Helper()
	var code int
	var body string
	within(b.t, time.Minute, func() bool {
		code, body = b.get(b.url + "/" + p.Hash().String() + ".narinfo")
		return code == 200
	})
	name := nix.NARName{Store: p.Hash(), Nar: p.NarHash()}.String()
	within(b.t, time.Minute, func() bool {
		code, body = b.get(b.url + "/nar/" + name)
		return code == 200 && body == string(p.NAR)
	})
}

// names reports whether status has a condition of this part that is no note; any status will do
// for "".
func (b *bench) names(part source.Part) bool {
	if part == "" {
		return true
	}
	var s admin.Status
	_, text := b.get(b.admin + "/api/v1/status")
	if json.Unmarshal([]byte(text), &s) != nil {
		return false
	}
	for _, c := range s.Conditions {
		if c.Part == string(part) && !c.Note {
			return true
		}
	}
	return false
}

// warnings counts the lines of the log above info that have a text.
func (b *bench) warnings(text string) (n int) {
	for line := range strings.Lines(b.logText()) {
		if strings.Contains(line, "level=WARN") && strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// TestAdminPortTaken: without its page the daemon substitutes, says so once, and has the page as
// soon as the port is free.
func TestAdminPortTaken(t *testing.T) {
	t.Parallel()
	key := nixtest.NewKey("cache.example.org-1")
	p := nixtest.NewPath("admin", 1000)
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: []nixtest.Key{key}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := front.Addr().String()
	_ = front.Close()
	d := &process{t: t, dir: t.TempDir()}
	args := []string{"serve", "--config", os.DevNull, "--listen", at, "--admin-listen", l.Addr().String(), "--state-dir", d.dir + "/s", "--cache-dir", d.dir + "/c",
		"--p2p=false", "--store-root", d.dir, "--upstream", up.URL(), "--trusted-public-key", key.Public()}
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), beMain+"=1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.cmd, d.end = cmd, make(chan struct{})
	go d.readLog(stderr, make(chan string, 2))
	t.Cleanup(d.stop)
	b := &bench{process: d}
	b.url, b.admin = "http://"+at, "http://"+l.Addr().String()
	within(t, 30*time.Second, func() bool { return strings.Contains(d.logText(), "listening url=") })
	b.substitutes(p)
	_ = l.Close()
	within(t, 30*time.Second, func() bool { return strings.Contains(d.logText(), "listening for admin") })
	if n := b.warnings("no page, API and metrics"); n != 1 || b.names(source.PartAdmin) {
		t.Errorf("%d warnings; still %v", n, b.names(source.PartAdmin))
	}
}

// TestLogPipe: neither a reader of the log that ends nor one that does not read keeps the daemon
// from its work.
func TestLogPipe(t *testing.T) {
	t.Parallel()
	for _, gone := range []bool{true, false} {
		key := nixtest.NewKey("cache.example.org-1")
		paths := closure(200, 1000, 1000)
		up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: paths, Keys: []nixtest.Key{key}})
		front, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := front.Addr().String()
		_ = front.Close()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0], "serve", "--config", os.DevNull, "--listen", at, "--admin-listen", "127.0.0.1:0", "--state-dir", dir+"/s", "--cache-dir", dir+"/c",
			"--p2p=false", "--store-root", dir, "--log-level", "debug", "--upstream", up.URL(), "--trusted-public-key", key.Public())
		cmd.Env = append(os.Environ(), beMain+"=1")
		cmd.Stdout, cmd.Stderr = w, w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		if gone {
			_ = r.Close()
		}
		b := &bench{process: &process{t: t, url: "http://" + at}}
		within(t, 30*time.Second, func() bool {
			c, err := net.Dial("tcp", at)
			if err == nil {
				_ = c.Close()
			}
			return err == nil
		})
		for _, p := range paths {
			b.substitutes(p)
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("reader gone %v: ended with %v", gone, err)
		}
		_ = r.Close()
	}
}
