package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// Shape of the large site.
const (
	largeStore  = 100_000 // paths
	largeShared = 1000    // of which may be shown: to sign all takes longer than the rest of the test
	largePeers  = 64
	maxPage     = 300 << 10
)

// crowded is a real node with peers, transfers and failures made up.
type crowded struct{ *adminNode }

func (crowded) Peers() (peers []admin.Peer) {
	for i := range largePeers {
		sum := sha256.Sum256([]byte{byte(i)})
		peers = append(peers, admin.Peer{
			ID: "12D3KooW" + hex.EncodeToString(sum[:])[:44], Addresses: []string{fmt.Sprintf("/ip4/10.20.30.%d/tcp/7656", i), "/ip6/fd00:1234:5678::1/tcp/7656"},
			FoundBy: "mdns", RTTMS: 1.5, Paths: largeStore, SentBytes: int64(i) << 30, ReceivedBytes: int64(i) << 29, Standing: "good",
			ReceivingBytesPerSecond: int64(i) << 20, SendingBytesPerSecond: int64(i) << 19,
		})
	}
	return peers
}

func (c crowded) State() admin.State {
	s := c.adminNode.State()
	for i := range 200 {
		path := nixtest.NewPath(fmt.Sprintf("a-package-with-a-name-of-usual-length-%d.%d", i, i), 0).StorePath.String()
		s.Transfers = append(s.Transfers, admin.Transfer{
			Direction: admin.Out, StorePath: path, NarHash: "sha256:" + strings.Repeat("1", 52), Form: "zstd", Source: "cache",
			Peer: "12D3KooW" + strings.Repeat("a", 44), Bytes: 123 << 20, Size: int64(200+i) << 20, BytesPerSecond: 9 << 20, Started: time.Now(), Readers: 3,
		})
		if i < 32 {
			s.Failures = append(s.Failures, admin.Failure{At: time.Now(), Times: i, What: "a peer sent a NAR that is not what was signed", Source: "peer", StorePath: path, Error: strings.Repeat("an error of some length ", 8)})
		}
	}
	return s
}

// largeSite is the admin listener of a node whose store has very many paths and whose site has
// very many peers.
func largeSite(t testing.TB) http.Handler {
	t.Helper()
	client := realnix.Find(t).TempClient(t)
	if _, err := client.Run(t.Context(), "nix-store", "--init"); err != nil {
		t.Fatal(err)
	}
	key := nixtest.NewKey("trusted-1")
	fill(t, client.Root, key)
	set := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	flags := config.Register(set)
	dir := t.TempDir()
	if err := set.Parse([]string{
		"--config", os.DevNull, "--p2p=false", "--upstream", "http://127.0.0.1:1", "--store-root", client.Root, "--state-dir", dir + "/state",
		"--cache-dir", dir + "/cache", "--trusted-public-key", key.Public(), "--share-key", key.Name,
	}); err != nil {
		t.Fatal(err)
	}
	cfg, err := flags.Load(config.Env{})
	if err != nil {
		t.Fatal(err)
	}
	m := metrics.New()
	log := slog.New(slog.DiscardHandler)
	n, err := newNode(cfg, m, "x", nil, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.run(ctx, log) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := n.close(); err != nil {
			t.Error(err)
		}
	})
	eventually(t, func() bool { return n.store.Census().Complete })
	node := crowded{&adminNode{}}
	node.node.Store(n)
	h, err := admin.New(admin.Config{Node: node, Metrics: m, Addr: "127.0.0.1:7655", Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// fill puts the paths into a database that Nix made.
func fill(t testing.TB, root string, key nixtest.Key) {
	t.Helper()
	program, err := exec.LookPath("sqlite3")
	if err != nil {
		t.Skip("THERE IS NO sqlite3: no large database is made")
	}
	var b bytes.Buffer
	b.WriteString("BEGIN;\n")
	for i := range largeStore {
		sum := sha256.Sum256([]byte(fmt.Sprint("made up ", i)))
		nar := sha256.Sum256(sum[:])
		hash := nix.StoreHash(sum[:20])
		path, err := nix.ParseBaseName(fmt.Sprintf("%s-made-up-%d", hash, i))
		if err != nil {
			t.Fatal(err)
		}
		sigs := ""
		if i < largeShared {
			n := &nix.NarInfo{StorePath: path, NarHash: nar, NarSize: 1000}
			key.Sign(n)
			sigs = n.Sigs[0].String()
		}
		fmt.Fprintf(&b, "INSERT INTO ValidPaths (path, hash, registrationTime, narSize, sigs) VALUES ('%s','sha256:%x',1,1000,'%s');\n", path, nar, sigs)
	}
	b.WriteString("COMMIT;\n")
	cmd := exec.Command(program, "-bail", filepath.Join(root, "nix/var/nix/db/db.sqlite"))
	cmd.Stdin = &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func readPage(t testing.TB, h http.Handler) string {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
	r.Host = "localhost"
	h.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatal(w.Code)
	}
	return w.Body.String()
}

// TestLargeSite: the page stays small, whatever the store and the site have.
func TestLargeSite(t *testing.T) {
	if testing.Short() {
		t.Skip("short: no large store")
	}
	page := readPage(t, largeSite(t))
	t.Logf("%d bytes", len(page))
	if len(page) > maxPage {
		t.Errorf("%d bytes", len(page))
	}
	for want, n := range map[string]int{
		`<tr data-key="12D3`: largePeers,
		`<data id="shared" value="1000">1,000</data> <span class="quiet">of 100,000</span>`: 1,
		`99,000 built here`:            1,
		`The largest 64 of 200.`:       1,
		`<progress value="128974848" `: 64,
		`<strong>a peer sent a NAR that is not what was signed</strong>`: 32,
	} {
		if got := strings.Count(page, want); got != n {
			t.Errorf("%q is there %d times, want %d", want, got, n)
		}
	}
}

// BenchmarkLargeSite says how long the page of such a node takes, and what it weighs.
func BenchmarkLargeSite(b *testing.B) {
	h := largeSite(b)
	for b.Loop() {
		b.ReportMetric(float64(len(readPage(b, h))), "page-bytes")
	}
}
