//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/hostile"
	"github.com/nixp2p/nixp2p/lab/rig"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// private is a path of the other corpus, as A's store and the upstream have it.
type private struct {
	info *nix.NarInfo
	kind string // unsigned, stranger, team
}

func (p *private) hash() nix.StoreHash { return p.info.StorePath.Hash() }

// hide has A's store hold the other corpus: a third unsigned, a third signed by a key that
// nobody trusts, a third by one that all trust but do not share.
func hide(ctx context.Context, st *stage, a *host, team signer) (list []*private, err error) {
	other := st.world.other
	if err := a.Fill(ctx, other.StoreRoot); err != nil {
		return nil, err
	}
	nobody := newSigner("nobody-1")
	var sql strings.Builder
	for i, p := range other.Paths {
		text, err := os.ReadFile(filepath.Join(other.Caches["none"], rig.HashOf(p.StorePath)+".narinfo"))
		if err != nil {
			return nil, err
		}
		n, err := nix.ParseNarInfo(text)
		if err != nil {
			return nil, err
		}
		x := &private{info: n, kind: "unsigned"}
		sigs := "NULL"
		switch i % 3 {
		case 1:
			x.kind, sigs = "stranger", "'"+nobody.sign(n)+"'"
		case 2:
			x.kind, sigs = "team", "'"+team.sign(n)+"'"
		}
		fmt.Fprintf(&sql, "UPDATE ValidPaths SET sigs = %s WHERE path = '%s';\n", sigs, p.StorePath)
		list = append(list, x)
	}
	_, err = a.sqlite(ctx, sql.String())
	return list, err
}

// strange runs the stranger in a host.
type strange struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
	err bytes.Buffer
}

// strangerEnv makes this program a stranger.
const strangerEnv = "NIXP2P_SITE_STRANGER"

func newStranger(h *host, task *hostile.Task) (*strange, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &strange{cmd: exec.Command("ip", "netns", "exec", h.NS, self)}
	s.cmd.Env = append(os.Environ(), strangerEnv+"=1")
	s.cmd.Stderr = &s.err
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = json.NewDecoder(out)
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	return s, json.NewEncoder(s.in).Encode(task)
}

func (s *strange) report() (r hostile.Report, err error) {
	if err = s.out.Decode(&r); err != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		err = fmt.Errorf("stranger: %w: %s", err, s.err.String())
	}
	return r, err
}

// end lets it go and returns what it was asked.
func (s *strange) end() (asked hostile.Asked, err error) {
	_ = s.in.Close()
	err = s.out.Decode(&asked)
	return asked, errors.Join(err, s.cmd.Wait())
}

const probes = 1000 // of each kind

func privacy(ctx context.Context, st *stage) error {
	a, b, m := st.hosts[0], st.hosts[1], st.hosts[2]
	team := newSigner("team-1")
	secrets, err := hide(ctx, st, a, team)
	if err != nil {
		return err
	}
	// A also has something to share: the store of the corpus goes into the same database.
	a.Client.Substituters = []string{st.cache.URL}
	if res, err := a.Realise(ctx, time.Minute, st.corpus.Top); err != nil {
		return fmt.Errorf("fill A: %s", said(res, err))
	}
	if err := st.startAll(ctx, []*host{a, b}, "--trusted-public-key", st.corpus.PublicKey, "--trusted-public-key", team.public()); err != nil {
		return err
	}
	if _, ok := st.know(ctx, 20*time.Second, b, a, int64(len(st.corpus.Paths))); !ok {
		return fmt.Errorf("B does not know what A has: %d", b.pathsOf(ctx, a))
	}
	if !rig.Pause(ctx, 3*time.Second) { // whatever else A has to tell
		return ctx.Err()
	}
	st.check(b.pathsOf(ctx, a) == int64(len(st.corpus.Paths)), "A's inventory counts what is shared and nothing else",
		"%d paths, of %d in the store", b.pathsOf(ctx, a), len(st.corpus.Paths)+len(secrets))
	for _, kind := range []string{"unsigned", "stranger", "team"} {
		st.notThere(ctx, b, secrets, kind)
	}
	x, questions, err := st.strangerAt(ctx, m, a, b, secrets)
	if err != nil {
		return err
	}
	report, err := x.report()
	if err != nil {
		return err
	}
	st.judge(&report, questions, len(secrets))
	if err := st.listen(ctx, b, secrets, team); err != nil {
		return err
	}
	asked, err := x.end()
	if err != nil {
		return err
	}
	all := strings.Join(asked.Paths, "\n")
	st.check(len(asked.Paths) > 0 && !strings.Contains(all, "/nar/"), "a peer that claims to have the private paths is asked by question only, for no NAR", "%d requests", len(asked.Paths))
	hits := 0
	for _, s := range secrets {
		if strings.Contains(all, s.hash().String()) || strings.Contains(all, s.info.NarHash.Nix32()) {
			hits++
		}
	}
	st.check(hits == 0, "and in what it is asked, decrypted, there is no hash of theirs", "%d", hits)
	return nil
}

// notThere has B's node and B's Nix ask for private paths.
func (st *stage) notThere(ctx context.Context, b *host, secrets []*private, kind string) {
	codes := map[int]int{}
	one := ""
	for _, s := range secrets {
		if s.kind == kind {
			code, _, _ := b.NarInfo(ctx, s.hash().String())
			codes[code]++
			one = s.info.StorePath.String()
		}
	}
	st.check(len(codes) == 1 && codes[404] > 0, fmt.Sprintf("B's node says that A's %s paths do not exist", kinds[kind]), "%v", codes)
	_, err := b.Realise(ctx, 30*time.Second, one)
	st.check(err != nil, "B's Nix cannot get one of them", "%v", err != nil)
}

var kinds = map[string]string{"unsigned": "unsigned", "stranger": "signed-by-a-stranger", "team": "trusted-but-not-shared"}

// strangerAt starts the stranger with its questions: private, absent and shared ones in a
// random order.
func (st *stage) strangerAt(ctx context.Context, m, a, b *host, secrets []*private) (*strange, []string, error) {
	toA, err := b.AddrOf(ctx, a.Host)
	if err != nil {
		return nil, nil, err
	}
	toB, err := a.AddrOf(ctx, b.Host)
	if err != nil {
		return nil, nil, err
	}
	task := &hostile.Task{Connect: []string{toA, toB}}
	var kindOf []string
	add := func(kind, path string) {
		task.Probes = append(task.Probes, path)
		kindOf = append(kindOf, kind)
	}
	ask := func(h nix.StoreHash) string { return wire.Request{IsInfo: true, Question: h.Question()}.Path() }
	for i := range probes {
		s := secrets[i%len(secrets)]
		add("private", ask(s.hash()))
		add("private NAR", wire.Request{Nar: s.info.NarHash}.Path())
		var h nix.StoreHash
		var n nix.NarHash
		for k := range h {
			h[k] = byte(rand.Uint32())
		}
		for k := range n {
			n[k] = byte(rand.Uint32())
		}
		add("absent", ask(h))
		add("absent NAR", wire.Request{Nar: n}.Path())
		if i < 50 {
			p := st.corpus.Paths[i]
			sh, err := nix.ParseStoreHash(rig.HashOf(p.StorePath))
			if err != nil {
				return nil, nil, err
			}
			add("shared", ask(sh))
		}
	}
	rand.Shuffle(len(kindOf), func(i, j int) {
		kindOf[i], kindOf[j] = kindOf[j], kindOf[i]
		task.Probes[i], task.Probes[j] = task.Probes[j], task.Probes[i]
	})
	for _, s := range secrets {
		task.Claim = append(task.Claim, s.hash())
		task.Look = append(task.Look, s.hash())
		task.NARs = append(task.NARs, s.info.NarHash)
	}
	// One that is shared and large shows that the DHT would tell.
	if n, err := narHash(st.corpus.Largest()); err == nil {
		task.NARs = append(task.NARs, n)
	}
	x, err := newStranger(m, task)
	return x, kindOf, err
}

func narHash(p realnix.Path) (n nix.NarHash, err error) {
	b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(p.NarHash, "sha256-"))
	if err != nil || len(b) != len(n) {
		return n, fmt.Errorf("NAR hash %q", p.NarHash)
	}
	return nix.NarHash(b), nil
}

// judge holds what the stranger learned against what it must not.
func (st *stage) judge(r *hostile.Report, kindOf []string, secrets int) {
	seen := 0
	for _, s := range r.Seen {
		if s {
			seen++
		}
	}
	st.check(r.Told && seen == 0, "A's inventory names none of the private paths", "%d of %d, inventory of %d paths in %d bytes", seen, secrets, r.Count, r.Bytes)
	holders := 0
	for _, n := range r.Holders[:secrets] {
		holders += n
	}
	known := 0
	if len(r.Holders) > secrets {
		known = r.Holders[secrets]
	}
	st.check(holders == 0 && known > 0, "the DHT names nobody for their NARs", "%d; %d for a large NAR that is shared", holders, known)
	type group struct {
		status  map[int]int
		shape   map[string]int
		micros  []float64
		answers int
	}
	groups := map[string]*group{}
	for i, a := range r.Answers {
		g := groups[kindOf[i]]
		if g == nil {
			g = &group{status: map[int]int{}, shape: map[string]int{}}
			groups[kindOf[i]] = g
		}
		g.status[a.Status]++
		g.shape[fmt.Sprintf("%d/%d/%d", a.Status, a.Headers, a.Bytes)]++
		g.micros = append(g.micros, float64(a.Took.Nanoseconds())/1000)
		g.answers++
	}
	st.check(len(groups["shared"].status) == 1 && groups["shared"].status[200] > 0, "what is shared the stranger gets", "%v", groups["shared"].status)
	for _, suffix := range []string{"", " NAR"} {
		p, a := groups["private"+suffix], groups["absent"+suffix]
		st.check(len(p.shape) == 1 && fmt.Sprint(p.shape) == fmt.Sprint(a.shape),
			"asked for private"+suffix+"s, A answers as for what does not exist (status/header lines/bytes: number)", "%v; absent: %v", p.shape, a.shape)
		z := rankSum(p.micros, a.micros)
		st.check(math.Abs(z) < 3.5, fmt.Sprintf("and in the same time (%d probes of each, rank sum |z| < 3.5)", p.answers),
			"z = %.2f; medians %.0f and %.0f µs", z, median(p.micros), median(a.micros))
	}
	st.figure("median answer for what is shared", median(groups["shared"].micros), "%.0f µs")
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

// rankSum is the test of Wilcoxon, Mann and Whitney: far from 0 when one side is slower.
func rankSum(x, y []float64) float64 {
	type v struct {
		t    float64
		left bool
	}
	var all []v
	for _, t := range x {
		all = append(all, v{t, true})
	}
	for _, t := range y {
		all = append(all, v{t, false})
	}
	slices.SortFunc(all, func(a, b v) int {
		switch {
		case a.t < b.t:
			return -1
		case a.t > b.t:
			return 1
		}
		return 0
	})
	var sum float64
	for i := 0; i < len(all); {
		j := i
		for j < len(all) && all[j].t == all[i].t {
			j++
		}
		for k := i; k < j; k++ {
			if all[k].left {
				sum += float64(i+j+1) / 2
			}
		}
		i = j
	}
	n, m := float64(len(x)), float64(len(y))
	return (sum - n*(n+m+1)/2) / math.Sqrt(n*m*(n+m+1)/12)
}

// listen captures B's packets while its Nix asks for private paths, of which the upstream has
// some: nothing of them may be in what goes to or comes from machines of the LAN.
func (st *stage) listen(ctx context.Context, b *host, secrets []*private, team signer) error {
	var wanted []string
	var fetched *private
	for _, s := range secrets {
		// One without references, for Nix to get all of it.
		if s.kind == "team" && len(s.info.References) == 0 && fetched == nil {
			fetched = s
			n := *s.info
			n.Sigs = nil
			if sig, err := nix.ParseSignature(team.sign(&n)); err == nil {
				n.Sigs = append(n.Sigs, sig)
			}
			file, err := os.ReadFile(filepath.Join(st.world.other.Caches["none"], n.URL))
			if err != nil {
				return err
			}
			st.cache.Add(map[string][]byte{"/" + s.hash().String() + ".narinfo": n.AppendText(nil), "/" + n.URL: file})
		}
		wanted = append(wanted, s.info.StorePath.String())
	}
	if fetched == nil {
		return errors.New("no private path without references")
	}
	// B has asked for them before and remembers: it starts anew.
	b.Stop()
	if err := os.RemoveAll(filepath.Join(b.Dir, "state", "narinfo")); err != nil {
		return err
	}
	if err := b.Client.ForgetAnswers(); err != nil {
		return err
	}
	c, err := captureIn(b.NS)
	if err != nil {
		return err
	}
	if err := st.startAll(ctx, []*host{b}, "--trusted-public-key", st.corpus.PublicKey, "--trusted-public-key", team.public()); err != nil {
		return err
	}
	if _, ok := st.mesh(ctx, 20*time.Second, []*host{b}, 2); !ok {
		return errors.New("B does not find its peers again")
	}
	if !rig.Pause(ctx, 5*time.Second) { // inventories
		return ctx.Err()
	}
	b.Client.TrustedKeys = append(b.Client.TrustedKeys, team.public())
	res, err := b.Realise(ctx, 30*time.Second, fetched.info.StorePath.String())
	st.check(err == nil, "B's Nix gets a path of the team's from the upstream", "%s", said(res, err))
	for _, w := range wanted {
		_, _ = b.Realise(ctx, 20*time.Second, w)
	}
	packets, err := c.end()
	if err != nil {
		return err
	}
	lan, up := searchPackets(packets, secrets)
	st.check(up > 0 && lan == 0, "in B's packets to and from the LAN is no hash of theirs", "%d of %d packets; in those to and from the upstream: %d", lan, len(packets), up)
	return nil
}

// searchPackets counts packets with a hash of a private path in any spelling, by whether the
// other side is the upstream.
func searchPackets(packets [][]byte, secrets []*private) (lan, upstream int) {
	var needles [][]byte
	for _, s := range secrets {
		h, n, q := s.hash(), s.info.NarHash, s.hash().Question()
		needles = append(needles, []byte(h.String()), h[:], []byte(n.Nix32()), n[:], []byte(hex.EncodeToString(n[:])),
			[]byte(base64.StdEncoding.EncodeToString(n[:])), q[:], []byte(q.String()))
	}
	for _, p := range packets {
		if !slices.ContainsFunc(needles, func(n []byte) bool { return bytes.Contains(p, n) }) {
			continue
		}
		if toUpstream(p) {
			upstream++
		} else {
			lan++
		}
	}
	return lan, upstream
}

// toUpstream tells whether an Ethernet frame is for or from the upstream, behind the gateway.
func toUpstream(p []byte) bool {
	const head = 14
	var from, to netip.Addr
	switch {
	case len(p) >= head+20 && p[12] == 8 && p[13] == 0:
		from, to = netip.AddrFrom4([4]byte(p[head+12:])), netip.AddrFrom4([4]byte(p[head+16:]))
	case len(p) >= head+40 && p[12] == 0x86 && p[13] == 0xdd:
		from, to = netip.AddrFrom16([16]byte(p[head+8:])), netip.AddrFrom16([16]byte(p[head+24:]))
	default:
		return false
	}
	far := func(a netip.Addr) bool {
		return a == netip.MustParseAddr("10.78.0.1") || a == netip.MustParseAddr("fd78::1")
	}
	return far(from) || far(to)
}
