package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/test"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/lab/hostile"
	"github.com/nixp2p/nixp2p/lab/rig"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// attack is what one hostile machine, with as many identities as it likes, does to a node.
type attack struct {
	name string
	// newcomer: the attacked node has the closure in its cache. Nix asks another node, which
	// joins during the attack and has no upstream.
	newcomer bool
	// begin starts the attack, which goes on until ctx ends. If nil, nothing happens.
	begin func(ctx context.Context, s *siege) error
	// introduce brings the newcomer and the attacked node together. If nil, the newcomer is
	// told the address of the node.
	introduce func(ctx context.Context, s *siege) error
	// again is done before each further command.
	again []func(ctx context.Context, s *siege) error
}

// elsewhere is the machine of the attacker, as far as the node can tell.
const elsewhere = "127.0.0.2"

func attacks() []*attack {
	claiming := func(l *lie) func(context.Context, *siege) error {
		return func(ctx context.Context, s *siege) error {
			return s.invite(ctx, 1, func() hostile.Config { return s.claiming(s.world.honest(l)) })
		}
	}
	return []*attack{
		{name: "nothing (an honest peer, for comparison)", begin: claiming(&lie{})},
		{name: "narinfo: a CA line that nobody signed", begin: claiming(&lie{info: func(w io.Writer, honest []byte, _ nixtest.Path) {
			hostile.Reply(w, fmt.Appendf(honest, "CA: fixed:r:sha256:%s\n", strings.Repeat("1", 52)))
		}})},
		{name: "narinfo: fat, with a signature of 900 kB beside the true one", begin: claiming(&lie{info: func(w io.Writer, honest []byte, _ nixtest.Path) {
			hostile.Reply(w, fmt.Appendf(honest, "Sig: %s:%s\n", strings.Repeat("k", 900_000), base64.StdEncoding.EncodeToString(make([]byte, 64))))
		}})},
		{name: "NAR: the right bytes at 40 KiB/s", begin: claiming(&lie{nar: func(w io.Writer, honest []byte, off int64) {
			hostile.Head(w, off, int64(len(honest)), "")
			hostile.Drip(w, honest[off:], 4<<10, 100*time.Millisecond)
		}})},
		{name: "NAR: zstd that nobody asked for, with a window of 128 MiB; 12 more of 130 MiB at the same time", begin: windows},
		{name: "coordinator: leads to a peer that gives a byte every 6 s", begin: leadNowhere},
		{name: "coordinator: leads to a file that is not the NAR", begin: leadToGarbage},
		{name: "reports to an honest coordinator: 12 peers claim to have all, and give a byte every 6 s", begin: claimProgress},
		{name: "the only cache lies about a file and its hash; it still does; it is honest; after a restart",
			begin: poison, again: []func(context.Context, *siege) error{lieOn, heal, restart}},
		{name: "nothing, but a newcomer (for comparison)", newcomer: true},
		{name: "upload slots: 100 slow requests of one identity, one of each of 16 others", newcomer: true, begin: occupy},
		{name: "1,024 TCP connections that say nothing", newcomer: true, begin: flood},
		{name: "260 identities of one machine are members", newcomer: true, begin: func(ctx context.Context, s *siege) error {
			return s.invite(ctx, 260, func() hostile.Config { return hostile.Config{} })
		}},
		{name: "1,536 addresses that lead nowhere; then a peer names the newcomer", newcomer: true, begin: fillBook, introduce: introduceByName},
	}
}

// claiming is a peer that says it has the closure.
func (s *siege) claiming(answer func(wire.Request, int64, bool, io.Writer) bool) hostile.Config {
	cfg := hostile.Config{Answer: answer}
	for _, p := range s.world.paths {
		cfg.Claim = append(cfg.Claim, p.Hash())
	}
	return cfg
}

// trickle gives a byte of any NAR every 6 s, as if it were coming in.
func trickle(sizes map[nix.NarHash]int64) func(wire.Request, int64, bool, io.Writer) bool {
	return func(ask wire.Request, off int64, _ bool, w io.Writer) bool {
		size, known := sizes[ask.Nar]
		if ask.IsInfo || !known {
			return false
		}
		hostile.Head(w, off, size, hostile.Have(off))
		hostile.Drip(w, make([]byte, 1000), 1, 6*time.Second)
		return true
	}
}

// files returns the size of each NAR as the cache has it, and what is named for it.
func (s *siege) files() (sizes map[nix.NarHash]int64, infos []*nix.NarInfo) {
	sizes = map[nix.NarHash]int64{}
	for _, p := range s.world.paths {
		n, err := nix.ParseNarInfo(s.world.good.NarInfo(p))
		if err != nil {
			panic(err)
		}
		sizes[n.NarHash] = n.FileSize
		infos = append(infos, n)
	}
	return sizes, infos
}

func leadNowhere(ctx context.Context, s *siege) error {
	sizes, _ := s.files()
	return s.invite(ctx, 3, func() hostile.Config {
		return hostile.Config{Answer: trickle(sizes), Lease: func(r lease.Request) lease.Answer { return hostile.LeadTo(s.ids, nil, 0)(r) }}
	})
}

func leadToGarbage(ctx context.Context, s *siege) error {
	garbage := bytes.Repeat([]byte("not the NAR\n"), 7000)
	form := nix.Form{Compression: nix.Zstd, File: fileHash(garbage)}
	answer := func(ask wire.Request, off int64, _ bool, w io.Writer) bool {
		if ask.IsInfo || ask.Form != form {
			return false
		}
		hostile.Give(w, garbage, off, int64(len(garbage)))
		return true
	}
	return s.invite(ctx, 3, func() hostile.Config {
		return hostile.Config{Answer: answer, Lease: func(r lease.Request) lease.Answer {
			return hostile.LeadTo(s.ids, &form, int64(len(garbage)))(r)
		}}
	})
}

// claimProgress: as they answer no questions about leases, the node coordinates by itself.
func claimProgress(ctx context.Context, s *siege) error {
	sizes, infos := s.files()
	if err := s.invite(ctx, 12, func() hostile.Config { return hostile.Config{Answer: trickle(sizes)} }); err != nil {
		return err
	}
	taken := 0
	for _, p := range s.peers {
		for _, n := range infos {
			form := nix.Form{Compression: n.Compression, File: n.FileHash}
			if p.Report(ctx, lease.Request{Verb: lease.Progress, Nar: n.NarHash, Form: form, Size: n.FileSize, Bytes: n.FileSize, Got: n.FileSize}) == nil {
				taken++
			}
		}
	}
	s.came = fmt.Sprintf("%d reports taken", taken)
	return nil
}

// windows: the peer has all, and 12 paths more for which others ask meanwhile.
func windows(ctx context.Context, s *siege) error {
	const size = 130 << 20
	frame := windowFrame()
	sizes := map[nix.NarHash]int64{}
	texts := map[nix.Question][]byte{}
	var ask []nix.NARName
	cfg := s.claiming(nil)
	for _, p := range s.world.paths {
		sizes[p.NarHash()], texts[p.Hash().Question()] = int64(len(p.NAR)), p.Signed(s.world.key).AppendText(nil)
	}
	for i := range 12 {
		p := nixtest.NewPath(fmt.Sprintf("window-%d", i), 100)
		n := p.NarInfo()
		n.NarSize = size
		s.world.key.Sign(n)
		sizes[p.NarHash()], texts[p.Hash().Question()] = size, n.AppendText(nil)
		ask = append(ask, nix.NARName{Store: p.Hash(), Nar: p.NarHash()})
		cfg.Claim = append(cfg.Claim, p.Hash())
	}
	cfg.Answer = func(r wire.Request, _ int64, _ bool, w io.Writer) bool {
		if r.IsInfo && texts[r.Question] != nil {
			hostile.Reply(w, texts[r.Question])
			return true
		}
		if r.IsInfo || sizes[r.Nar] == 0 {
			return false
		}
		_, _ = fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Encoding: zstd\r\nTransfer-Encoding: chunked\r\n%s: %d\r\n\r\n%x\r\n%s\r\n", wire.SizeHeader, sizes[r.Nar], len(frame), frame)
		for range 4 {
			_, _ = fmt.Fprintf(w, "%x\r\n%s\r\n", len(frame)-6, frame[6:])
		}
		hostile.Drip(w, bytes.Repeat([]byte("4\r\n\x0a\x00\x00A\r\n"), 60), 9, time.Second)
		return true
	}
	if err := s.invite(ctx, 1, func() hostile.Config { return cfg }); err != nil {
		return err
	}
	for _, name := range ask {
		s.goes.Go(func() {
			_ = s.node.fetch(ctx, "/"+name.Store.String()+".narinfo")
			_ = s.node.fetch(ctx, "/"+name.URL())
		})
	}
	return nil
}

// windowFrame begins a zstd frame with a window of 128 MiB, of which blocks of one byte fill 30.
func windowFrame() []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, (27 - 10) << 3}
	for range 230 {
		const head = 128<<10<<3 | 1<<1
		b = append(b, head&0xff, head>>8&0xff, head>>16&0xff, 'A')
	}
	return b
}

// poison: the narinfo is signed; where the file lies and what its hash is, nobody signs.
func poison(_ context.Context, s *siege) error {
	other := nixtest.Compress(s.world, nix.XZ, nixtest.NewPath("another", largeFile).NAR)
	n, err := nix.ParseNarInfo(s.world.good.NarInfo(s.world.top))
	if err != nil {
		return err
	}
	n.URL, n.FileHash, n.FileSize = "nar/another.nar.xz", fileHash(other.Bytes), int64(len(other.Bytes))
	s.world.good.Serve("/"+n.URL, other.Bytes)
	s.world.good.Set(nixtest.NarInfo, nixtest.Fault{Body: n.AppendText(nil), Only: func(r *http.Request) bool {
		return strings.Contains(r.URL.Path, s.world.top.Hash().String())
	}})
	return nil
}

func heal(_ context.Context, s *siege) error {
	s.world.good.SetAll()
	return nil
}

// lieOn leaves everything as it is.
func lieOn(context.Context, *siege) error { return nil }

func restart(ctx context.Context, s *siege) (err error) {
	s.node.stop()
	s.node, err = startDaemon(ctx, s.binary, s.args)
	s.asked = s.node
	return err
}

func occupy(ctx context.Context, s *siege) error {
	if err := s.invite(ctx, 17, func() hostile.Config { return hostile.Config{} }); err != nil {
		return err
	}
	small, large := s.world.paths[len(s.world.paths)-2].NarHash(), s.world.top.NarHash()
	var mu sync.Mutex
	seen := map[int]int{}
	answered := func(status int) {
		mu.Lock()
		defer mu.Unlock()
		seen[status]++
	}
	for i, p := range s.peers {
		if i == 0 {
			p.Occupy(ctx, 100, []nix.NarHash{small}, answered)
		} else {
			p.Occupy(ctx, 1, []nix.NarHash{large}, answered)
		}
	}
	rig.Pause(ctx, 3*time.Second)
	mu.Lock()
	defer mu.Unlock()
	s.came = fmt.Sprintf("answers by status after 3 s: %v", seen)
	return nil
}

// flood holds connections, and makes new ones for those that are closed.
func flood(ctx context.Context, s *siege) error {
	parts := strings.Split(s.node.peer, "/") // "", ip4, address, tcp, port, p2p, ID
	to := net.JoinHostPort(parts[2], parts[4])
	dialer := net.Dialer{Timeout: 3 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(elsewhere)}}
	for range 1024 {
		s.goes.Go(func() {
			for ctx.Err() == nil {
				if c, err := dialer.DialContext(ctx, "tcp", to); err == nil {
					end := context.AfterFunc(ctx, func() { _ = c.Close() })
					_, _ = io.Copy(io.Discard, c)
					end()
					_ = c.Close()
				}
				rig.Pause(ctx, 200*time.Millisecond)
			}
		})
	}
	rig.Pause(ctx, 4*time.Second)
	return nil
}

// fillBook names addresses in one session, in frames as nodes send them.
func fillBook(ctx context.Context, s *siege) error {
	if err := s.invite(ctx, 2, func() hostile.Config { return hostile.Config{} }); err != nil {
		return err
	}
	for range 12 {
		var list []string
		for range 128 {
			id, err := test.RandPeerID()
			if err != nil {
				return err
			}
			list = append(list, fmt.Sprintf("/ip4/127.%d.%d.%d/tcp/%d/p2p/%s", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250), 1024+rand.IntN(60000), id))
		}
		if err := s.peers[0].Say(ctx, wire.Peers, wire.AppendPeers(nil, list)); err != nil {
			s.came = "hung up on"
			return nil
		}
	}
	rig.Pause(ctx, 3*time.Second)
	return nil
}

// introduceByName is how an honest peer, on a machine of its own, tells the node of the newcomer.
func introduceByName(ctx context.Context, s *siege) error {
	p, err := hostile.New(hostile.Config{Listen: "/ip4/127.0.0.3/tcp/0"})
	if err != nil {
		return err
	}
	if _, err := p.Join(ctx, s.node.peer); err != nil {
		p.Close()
		return err
	}
	s.goes.Go(func() {
		defer p.Close()
		for p.Say(ctx, wire.Peers, wire.AppendPeers(nil, []string{s.asked.peer})) == nil && rig.Pause(ctx, 2*time.Second) {
		}
	})
	return nil
}

// invite adds peers and connects them to the node.
func (s *siege) invite(ctx context.Context, count int, cfg func() hostile.Config) error {
	var failed error
	var mu sync.Mutex
	var all sync.WaitGroup
	free := make(chan struct{}, 8)
	for range count {
		c := cfg()
		c.Listen = "/ip4/" + elsewhere + "/tcp/0"
		p, err := hostile.New(c)
		if err != nil {
			return err
		}
		s.peers, s.ids = append(s.peers, p), append(s.ids, p.ID())
	}
	joined := 0
	for _, p := range s.peers {
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			_, err := p.Join(ctx, s.node.peer)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				joined++
			} else {
				failed = err
			}
		})
	}
	all.Wait()
	if joined < count {
		s.came = fmt.Sprintf("%d of %d came in", joined, count)
	}
	if joined == 0 {
		return failed
	}
	rig.Pause(ctx, 2*time.Second)
	return nil
}
