package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/hedge"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/balance"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// infoTime bounds a question to the peers as a whole. A peer that has not answered within
	// slowAfter is not asked for narinfos for a while.
	infoTime  = time.Second
	slowAfter = 100 * time.Millisecond
	// infoParallel peers are asked for the same narinfo at a time.
	infoParallel = 3
	// answerFor is how long a peer's list of forms is used.
	answerFor = 5 * time.Second
)

// answer is which forms a peer said it has.
type answer struct {
	forms  []wire.Present
	listed bool // by the peer itself
	until  time.Time
}

// Info asks the peers whose inventory may have the path. If there are none, it answers in
// microseconds. A narinfo that no share key signed is absent: its NAR could not be asked for.
func (c *Client) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	q := h.Question()
	holders := c.cfg.Site.Holders(inventory.KeyOf(q))
	if len(holders) == 0 {
		return nil, errNobody
	}
	var peers []*site.Peer
	for _, p := range holders {
		if p.UsableForInfo() && !c.blamed(p) && !c.rests(p) {
			peers = append(peers, p)
		}
	}
	if len(peers) == 0 {
		return nil, errQuiet
	}
	balance.Order(peers, (*site.Peer).Meter)
	nearFirst(c.cfg.Zone.name(), peers)
	ctx, cancel := runclock.WithTimeout(ctx, infoTime)
	defer cancel()
	var worst worst
	var running atomic.Int32
	r, release, wait := hedge.Do(ctx, len(peers), infoParallel, c.infos.After, func(ctx context.Context, i int) (*verify.Info, error) {
		if running.Add(1) > 1 {
			c.cfg.Metrics.PeerHedges.WithLabelValues("narinfo", "sent").Inc()
		}
		defer running.Add(-1)
		info, err := c.askInfo(ctx, peers[i], h, q)
		worst.note(err)
		return info, err
	}, nil, func(*verify.Info) {})
	release()
	wait()
	switch {
	case r.Err == nil:
		if r.Late {
			c.cfg.Metrics.PeerHedges.WithLabelValues("narinfo", "won").Inc()
		}
		return r.Value, nil
	case worst.err != nil:
		return nil, worst.err
	default:
		return nil, errNobody
	}
}

// worst keeps the error that says most: invalid before unavailable before absent.
type worst struct {
	mu  sync.Mutex
	err error
}

func (w *worst) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && !source.Absent(err) && (w.err == nil || source.Invalid(w.err) == nil) {
		w.err = err
	}
}

// askInfo asks one peer for a narinfo, and proves it.
func (c *Client) askInfo(ctx context.Context, p *site.Peer, h nix.StoreHash, q nix.Question) (*verify.Info, error) {
	start := time.Now()
	text, forms, err := c.fetchInfo(ctx, p, q)
	took := time.Since(start)
	switch {
	case err == nil || source.Absent(err):
		p.Answered(took)
		c.infos.Observe(took)
		p.RecordPositive(err == nil)
	case took >= slowAfter:
		c.infos.Observe(took)
		p.SlowAnswer()
	}
	c.log.Debug("asked peer", "peer", p.Key, "store_hash", h, "took", took, "err", err)
	if err != nil {
		return nil, err
	}
	info, err := c.prove(text, h)
	if invalid := source.Invalid(err); invalid != nil {
		c.countWrong(invalid.Reason)
		c.blame(p.Key, source.WrongInfo, "", invalid)
	}
	if err == nil {
		c.answers.Add(asked{p.ID, info.NarHash()}, answer{orRaw(forms, info), forms != nil, time.Now().Add(answerFor)})
	}
	return info, err
}

// orRaw returns the forms of an answer. An older version lists none: it has the NAR raw, or
// makes it so.
func orRaw(forms []wire.Present, info *verify.Info) []wire.Present {
	if forms == nil {
		return []wire.Present{{Form: nix.Raw, Bytes: info.NarSize(), Size: info.NarSize()}}
	}
	return forms
}

// prove makes a proof of what a peer said. Another node's trust may differ from this one's: a
// narinfo that only unknown keys signed is not wrong. Fields that no key signed are not for a
// peer to say.
func (c *Client) prove(text []byte, h nix.StoreHash) (*verify.Info, error) {
	info, err := c.cfg.Keys.Open(text, h)
	if invalid := source.Invalid(err); invalid != nil && invalid.Reason == verify.ReasonUnsigned {
		return nil, errNobody
	}
	if err != nil {
		return nil, err
	}
	if !info.SignedByAny(c.cfg.ShareKeys) {
		return nil, errNobody
	}
	return info.WithoutHints(), nil
}

// fetchInfo returns the narinfo text of one peer, and its list of forms: nil if it is an older
// version, which sends none.
func (c *Client) fetchInfo(ctx context.Context, p *site.Peer, q nix.Question) ([]byte, []wire.Present, error) {
	resp, err := c.get(ctx, p, wire.Request{IsInfo: true, Question: q}, nil)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, nil, errNobody
	default:
		return nil, nil, fmt.Errorf("p2p: peer %s: status %d", p.Key, resp.StatusCode)
	}
	if resp.Header.Get("Content-Encoding") != "" {
		return nil, nil, fmt.Errorf("p2p: peer %s: %w", p.Key, errCoding)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxInfo+1))
	if err == nil && len(text) > wire.MaxInfo {
		err = errTooLong
	}
	var forms []wire.Present
	if list := resp.Header.Get(wire.FormsHeader); err == nil && list != "" {
		forms, err = wire.ParseForms(list)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("p2p: peer %s: %w", p.Key, err)
	}
	return text, forms, nil
}

var (
	errTooLong = errors.New("a longer answer than a narinfo has")
	errCoding  = errors.New("a content coding that was not asked for")
)

// get asks a peer for a narinfo or a NAR.
func (c *Client) get(ctx context.Context, p *site.Peer, ask wire.Request, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://peer"+ask.Path(), http.NoBody)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header
	}
	return c.cfg.Site.RoundTrip(p, req)
}

// forms returns which forms of a NAR a peer has, and asks it if it has not said so lately.
func (c *Client) forms(ctx context.Context, p *site.Peer, info *verify.Info) ([]wire.Present, error) {
	k := asked{p.ID, info.NarHash()}
	if a, ok := c.answers.Get(k); ok && time.Now().Before(a.until) {
		return a.forms, nil
	}
	h := info.StorePath().Hash()
	if _, err := c.askInfo(ctx, p, h, h.Question()); err != nil {
		return nil, err
	}
	a, ok := c.answers.Get(k)
	if !ok {
		return nil, errNobody // the peer has another NAR for this path
	}
	return a.forms, nil
}

// Raw reports whether a peer said lately that it has info's NAR raw, or is getting it raw. One that
// lists no forms may have to make it. It asks nobody.
func (c *Client) Raw(info *verify.Info) bool {
	for f, listed := range c.said(info) {
		if f.Form.IsRaw() && listed {
			return true
		}
	}
	return false
}

// FileSize returns the size of an upstream's file of info's NAR, as a peer said lately, 0 if none
// did. It asks nobody.
func (c *Client) FileSize(info *verify.Info) int64 {
	for f := range c.said(info) {
		if !f.Form.IsRaw() {
			return f.Size
		}
	}
	return 0
}

// said yields the forms that peers said lately they have of a NAR, and whether they listed them.
func (c *Client) said(info *verify.Info) iter.Seq2[wire.Present, bool] {
	return func(yield func(wire.Present, bool) bool) {
		for _, p := range c.cfg.Site.Holders(keyOf(info)) {
			a, ok := c.answers.Get(asked{p.ID, info.NarHash()})
			if !ok || time.Now().After(a.until) {
				continue
			}
			for _, f := range a.forms {
				if !yield(f, a.listed) {
					return
				}
			}
		}
	}
}
