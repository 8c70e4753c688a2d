package upstream

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var key = nixtest.NewKey("cache.example.org-1")

// quick are patiences that make tests short. What must not happen by chance on a busy
// machine is long.
var quick = timeouts{
	lookup: 10 * time.Second, connect: 10 * time.Second, tls: 10 * time.Second,
	headers: 10 * time.Second, late: 10 * time.Second, first: 10 * time.Second, stall: 10 * time.Second, crawl: 10 * time.Second,
	probe: 20 * time.Millisecond, probing: 2 * time.Second, refresh: time.Hour,
	hedge: time.Minute, retry: 4 * time.Millisecond, busyMost: time.Minute, busy: time.Minute,
	wrong: 5 * time.Millisecond,
}

// byName returns a URL of this machine with its name: another host than its address, as far as
// credentials go. The test is left out where the name has no address, as in a bare chroot.
func byName(t *testing.T, url string) string {
	t.Helper()
	if _, err := net.DefaultResolver.LookupHost(t.Context(), "localhost"); err != nil {
		t.Skip("localhost HAS NO ADDRESS (/etc/hosts): ", err)
	}
	return strings.Replace(url, "127.0.0.1", "localhost", 1)
}

// hasty is for those who are kept waiting.
func hasty(c *Config) {
	const soon = 2 * time.Second
	c.timeouts.headers, c.timeouts.first, c.timeouts.stall, c.timeouts.probing = soon, soon, soon, soon
}

// soonHedge is how soon the next cache is asked too, in tests where the first one may not answer.
const soonHedge = 30 * time.Millisecond

// hastyFor is hasty where a fault is to hang.
func hastyFor(faults ...nixtest.Fault) func(*Config) {
	if slices.ContainsFunc(faults, func(f nixtest.Fault) bool { return f.Do == nixtest.Hang }) {
		return hasty
	}
	return nil
}

// logged is a log that tests read.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type bench struct {
	*Upstreams
	t       testing.TB
	metrics *metrics.Metrics
	log     *logged
}

func open(t testing.TB, edit func(*Config), urls ...string) *bench {
	t.Helper()
	b := &bench{t: t, metrics: metrics.New(), log: &logged{}}
	cfg := Config{
		URLs: urls, Keys: nixtest.Keys(t, key), ID: "self", Version: "1", Metrics: b.metrics, timeouts: quick,
		Log: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if edit != nil {
		edit(&cfg)
	}
	u, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Upstreams = u
	t.Cleanup(u.network.close)
	return b
}

// run calls Run until the test ends.
func (b *bench) run() {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
	})
}

// until waits for something that another goroutine brings about.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		<-tick.C
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

// count returns the sum of a metric over all labels that have the given values.
func (b *bench) count(name string, values ...string) float64 {
	b.t.Helper()
	families, err := b.metrics.Registry.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != prometheus.BuildFQName("nixp2p", "", name) {
			continue
		}
	metrics:
		for _, m := range f.GetMetric() {
			var have []string
			for _, l := range m.GetLabel() {
				have = append(have, l.GetValue())
			}
			for _, v := range values {
				if !strings.Contains(" "+strings.Join(have, " ")+" ", " "+v+" ") {
					continue metrics
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

// kindOf names which of the three kinds an error is.
func kindOf(err error) string {
	invalid := source.Invalid(err)
	switch {
	case err == nil:
		return "ok"
	case invalid != nil && errors.Is(err, fs.ErrNotExist):
		return "two kinds at once"
	case invalid != nil:
		return "invalid " + string(invalid.Reason)
	case source.Refused(err) != nil:
		return "refused" // which is absent
	case errors.Is(err, fs.ErrNotExist):
		return "absent"
	}
	return "unavailable"
}

// read returns all of a NAR in a form, and the error of opening or reading it.
func (b *bench) read(info *verify.Info, form nix.Form, off int64) ([]byte, error) {
	b.t.Helper()
	nar, err := b.NAR(b.t.Context(), info, form, off)
	if err != nil {
		return nil, err
	}
	defer nar.Body.Close()
	got, err := io.ReadAll(nar.Body)
	if want := info.NarSize(); form.IsRaw() && nar.Size != want {
		b.t.Errorf("size %d, want %d", nar.Size, want)
	}
	return got, err
}

func (b *bench) mustInfo(p nixtest.Path) *verify.Info {
	b.t.Helper()
	info, err := b.Info(b.t.Context(), p.Hash())
	if err != nil {
		b.t.Fatal(err)
	}
	return info
}

// cache returns the configuration of a cache that has paths and signs them.
func cache(c nix.Compression, paths ...nixtest.Path) nixtest.UpstreamConfig {
	return nixtest.UpstreamConfig{Paths: paths, Keys: []nixtest.Key{key}, Compression: c}
}

func certs(u *nixtest.Upstream, tls bool) *x509.CertPool {
	if !tls {
		return nil
	}
	return u.CertPool()
}

func countDials(n *int) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		*n++
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
}
