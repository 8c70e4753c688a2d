package p2p

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/pick"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// infoTime bounds a question to the peers as a whole; who has not answered within
	// slowAfter is not asked for a while.
	infoTime  = time.Second
	slowAfter = 100 * time.Millisecond
	// infoAsked peers at most are asked at the same time for the same.
	infoAsked = 3
)

// errNobody costs nothing: it is the answer for most paths.
var errNobody = fmt.Errorf("p2p: no peer has it: %w", fs.ErrNotExist)

var errQuiet = errors.New("p2p: the peers that may have it do not answer")

// Info asks peers whose inventory says that they may share the path. Where none does, that
// is told in microseconds. What a share key has not signed is absent: its NAR could not be
// asked for.
func (n *Node) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	q := h.Question()
	var some [8]*remote
	all := n.holders(some[:0], inventory.KeyOf(q))
	if len(all) == 0 {
		return nil, errNobody
	}
	asked := all[:0]
	for _, r := range all {
		if _, liar := n.standing.Lied(r.key); !liar && r.prompt() && n.admitted(r) {
			asked = append(asked, r)
		}
	}
	if len(asked) == 0 {
		return nil, errQuiet
	}
	pick.Order(asked, func(r *remote) *pick.Meter { return &r.meter })
	return n.askAll(ctx, asked, h, q)
}

// holders appends the peers whose inventory says that they may share what k stands for.
func (n *Node) holders(list []*remote, k inventory.Key) []*remote {
	for _, r := range n.table.all() {
		if r.has(k) {
			list = append(list, r)
		}
	}
	return list
}

type infoAnswer struct {
	info   *verify.Info
	err    error
	hedged bool // asked because another was slow
}

// askAll asks one peer after the other, the next one when the last has said no or is slower
// than usual.
func (n *Node) askAll(ctx context.Context, peers []*remote, h nix.StoreHash, q nix.Question) (*verify.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, infoTime)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	answers := make(chan infoAnswer, len(peers))
	hedge := time.NewTimer(n.hedge.After())
	defer hedge.Stop()
	next, out := 0, 0
	ask := func(hedged bool) {
		if next == len(peers) || out == infoAsked {
			return
		}
		r := peers[next]
		next++
		out++
		all.Go(func() {
			info, err := n.askInfo(ctx, r, h, q)
			answers <- infoAnswer{info, err, hedged}
		})
		if hedged {
			n.cfg.Metrics.PeerHedges.WithLabelValues("narinfo", "sent").Inc()
		}
		hedge.Reset(n.hedge.After())
	}
	ask(false)
	var lie *verify.InvalidError
	var failed error
	var later *LaterError
	for out > 0 && later == nil {
		select {
		case <-hedge.C:
			ask(true)
		case a := <-answers:
			out--
			var lied *verify.InvalidError
			switch {
			case a.err == nil:
				n.passOver(lie)
				if a.hedged {
					n.cfg.Metrics.PeerHedges.WithLabelValues("narinfo", "won").Inc()
				}
				return a.info, nil
			case errors.As(a.err, &later): // an upstream is next, not another peer
			case errors.As(a.err, &lied):
				n.passOver(lie)
				lie = lied
			case !errors.Is(a.err, fs.ErrNotExist):
				failed = a.err
			}
			ask(false)
		}
	}
	switch {
	case later != nil:
		n.passOver(lie)
		return nil, later
	case lie != nil:
		return nil, lie
	case failed != nil:
		return nil, failed
	}
	return nil, errNobody
}

// LaterError says that peers share a path, but not its raw NAR at once: they have it as an
// upstream's file, or get that at the moment. Whoever can ask an upstream learns there of the
// file, which many can then share as it is; for all others the peers decode it.
type LaterError struct{ info *verify.Info }

func (e *LaterError) Error() string {
	return "p2p: peers have only the file of " + e.info.StorePath().Base()
}

// Instead returns the narinfo to go by where nobody says more.
func (e *LaterError) Instead() *verify.Info { return e.info }

// passOver counts a lie that is not returned: the one that is counts the caller.
func (n *Node) passOver(lie *verify.InvalidError) {
	if lie != nil {
		n.cfg.Metrics.VerifyFailures.WithLabelValues(n.Name(), string(lie.Reason)).Inc()
	}
}

// askInfo asks one peer for a narinfo, and proves it.
func (n *Node) askInfo(ctx context.Context, r *remote, h nix.StoreHash, q nix.Question) (*verify.Info, error) {
	start := time.Now()
	text, raw, err := n.fetchInfo(ctx, r, q)
	took := time.Since(start)
	switch {
	case err == nil || errors.Is(err, fs.ErrNotExist):
		r.answered(took)
		n.hedge.Note(took)
		r.confirmed(err == nil)
	case took >= slowAfter:
		r.late()
	}
	n.log.Debug("asked peer", "peer", r.id, "store_hash", h, "took", took, "err", err)
	if err != nil {
		return nil, err
	}
	info, err := n.prove(text, h)
	var lie *verify.InvalidError
	if errors.As(err, &lie) {
		n.convict(r.key, lie)
	}
	if err == nil && !raw {
		return nil, &LaterError{info}
	}
	return info, err
}

// prove makes a proof of what a peer said. Another node's trust may differ from this one's:
// a narinfo that only keys signed that do not count here is no lie.
func (n *Node) prove(text []byte, h nix.StoreHash) (*verify.Info, error) {
	ni, err := nix.ParseNarInfo(text)
	if err != nil {
		return nil, &verify.InvalidError{Reason: verify.ReasonCorrupt, Err: err}
	}
	// What no key signed is not for a peer to say: from peers NARs come raw.
	ni.Compression, ni.FileHash, ni.FileSize = nix.None, nix.FileHash(ni.NarHash), ni.NarSize
	info, err := n.cfg.Keys.OpenNarInfo(ni, h)
	var lie *verify.InvalidError
	if errors.As(err, &lie) && lie.Reason == verify.ReasonUnsigned {
		return nil, errNobody
	}
	if err != nil {
		return nil, err
	}
	if !info.SignedByAny(n.cfg.ShareKeys) {
		return nil, errNobody
	}
	return info, nil
}

// fetchInfo returns the narinfo text of one peer, and whether it has the raw NAR.
func (n *Node) fetchInfo(ctx context.Context, r *remote, q nix.Question) (text []byte, raw bool, err error) {
	resp, err := n.request(ctx, http.MethodGet, r, wire.Request{IsInfo: true, Question: q}, nil)
	if err != nil {
		return nil, false, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, false, errNobody
	default:
		return nil, false, fmt.Errorf("p2p: peer %s: status %d", r.id, resp.StatusCode)
	}
	text, err = io.ReadAll(io.LimitReader(resp.Body, wire.MaxInfo+1))
	if err != nil {
		return nil, false, fmt.Errorf("p2p: peer %s: %w", r.id, err)
	}
	return text, resp.Header.Get(wire.FileHeader) == "", nil
}

const (
	// openStream bounds opening a stream on a connection that is there.
	openStream = 3 * time.Second
	// maxHead bounds the head of an answer: those of peers are short.
	maxHead = 16 << 10
)

var errNoHost = errors.New("p2p: not running")

// request asks a connected peer for a narinfo or a NAR.
func (n *Node) request(ctx context.Context, method string, r *remote, ask wire.Request, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://peer"+ask.Path(), nil)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header
	}
	return n.roundTrip(r, req)
}

// roundTrip sends any request to a connected peer, on a stream of its own. It is not
// http.Transport: that would keep the stream, and would log whatever a liar sends over it
// afterwards. The end of the request's context ends the reading of the body as well.
func (n *Node) roundTrip(r *remote, req *http.Request) (*http.Response, error) {
	h := n.host.Load()
	if h == nil {
		return nil, errNoHost
	}
	defer r.use()()
	ctx := req.Context()
	req.Header["User-Agent"] = nil
	octx, cancel := context.WithTimeout(network.WithNoDial(ctx, "request"), openStream)
	defer cancel()
	s, err := (*h).NewStream(octx, r.id, httpProtocol)
	if err != nil {
		return nil, fmt.Errorf("p2p: peer %s: %w", r.id, err)
	}
	// Closing could wait for the other side; a reset does not, and takes back nothing that
	// was read.
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	end := func() {
		stop()
		_ = s.Reset()
	}
	head := &io.LimitedReader{R: newStreamConn(s, r), N: maxHead}
	in := bufio.NewReader(head)
	err = req.Write(s)
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(in, req)
	}
	if err != nil {
		end()
		if ctx.Err() != nil {
			err = ctx.Err() // it ended the stream
		}
		return nil, fmt.Errorf("p2p: peer %s: %w", r.id, err)
	}
	head.N = math.MaxInt64
	resp.Body = &answerBody{resp.Body, end}
	return resp, nil
}

// answerBody ends its stream when it is closed.
type answerBody struct {
	io.Reader
	end func()
}

func (b *answerBody) Close() error {
	b.end()
	return nil
}

// convict remembers a liar.
func (n *Node) convict(key string, lie *verify.InvalidError) {
	n.log.Warn("peer lied", "peer", key, "err", lie)
	n.vouched.Delete(key)
	n.trouble(key, "lied and is not asked any more", lie)
	if err := n.standing.Convict(key, lie.Error()); err != nil {
		n.log.Warn("a liar is remembered only until the end", "err", err)
	}
}

// trouble tells people about a peer.
func (n *Node) trouble(key, what string, err error) {
	if n.cfg.Trouble != nil {
		n.cfg.Trouble("peer", key+" "+what, "", err)
	}
}
