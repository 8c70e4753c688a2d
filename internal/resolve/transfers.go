package resolve

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Transfer is a NAR on its way, for status pages.
type Transfer struct {
	Info    *verify.Info
	Inbound bool     // from afar into the cache; else to Nix
	Form    nix.Form // of the bytes that are counted
	Source  string   // who gives them, "" when nobody does yet
	Bytes   int64    // done
	Size    int64    // of the whole, or of the part that was asked for
	Rate    int64    // bytes a second, lately
	Started time.Time
	Readers int // who waits for it
}

// Transfers returns what is on its way now, in no order.
func (r *Resolver) Transfers() []Transfer {
	list := r.responses.list()
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, d := range r.downloads {
		source, _ := d.giver.Load().(string)
		list = append(list, Transfer{
			Info: d.info, Inbound: true, Form: key.form, Source: source, Bytes: d.flow.Load(), Size: key.size,
			Rate: d.flow.Rate(d.started), Started: d.started, Readers: d.followers,
		})
	}
	return list
}

// Giver returns the name of the source near by that was chosen first, "" when the bytes come
// from afar.
func (n *NAR) Giver() string {
	if n.d != nil || len(n.choice.near) == 0 {
		return ""
	}
	return n.choice.near[0].Name()
}

// metered counts what goes into the spool.
type metered struct {
	Download
	flow *metrics.Flow
}

func (m metered) Write(p []byte) (int, error) {
	n, err := m.Download.Write(p)
	m.flow.Add(int64(n))
	return n, err
}

// response is a NAR on its way to Nix. It counts by the source that gives at the moment.
type response struct {
	io.Writer
	n       *NAR
	flow    metrics.Flow
	size    int64
	started time.Time
	giver   string                 // of the last bytes
	source  atomic.Pointer[string] // giver, for others to read
}

func (c *response) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	source := c.n.source()
	if source != c.giver {
		c.giver = source
		c.source.Store(&source)
	}
	c.flow.Add(int64(n))
	c.n.r.count.sent(source, int64(n))
	return n, err
}

// responses are those on their way. The lock is taken when one begins and when it ends, never
// while it runs.
type responses struct {
	mu  sync.Mutex
	all map[*response]struct{}
}

// begin returns the writer for a response of size bytes of n, which counts what goes to Nix
// and nothing else, and what is called at its end.
func (r *responses) begin(n *NAR, w io.Writer, size int64) (io.Writer, func()) {
	if n.q.ForPeer {
		return w, func() {}
	}
	c := &response{Writer: w, n: n, size: size, started: time.Now()}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = make(map[*response]struct{})
	}
	r.all[c] = struct{}{}
	return c, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.all, c)
	}
}

func (r *responses) list() []Transfer {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Transfer, 0, len(r.all))
	for c := range r.all {
		t := Transfer{
			Info: c.n.info, Form: c.n.name.Form, Bytes: c.flow.Load(), Size: c.size,
			Rate: c.flow.Rate(c.started), Started: c.started, Readers: 1,
		}
		if s := c.source.Load(); s != nil {
			t.Source = *s
		}
		list = append(list, t)
	}
	return list
}
