package hostile

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/httprange"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/lab/rig"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/server"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// Reply writes a response with a body of a known length.
func Reply(w io.Writer, body []byte) {
	_, _ = fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(body))
	_, _ = w.Write(body)
}

// Refuse writes a 404.
func Refuse(w io.Writer) {
	_, _ = io.WriteString(w, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
}

// Head begins the answer to a request for a NAR of size bytes from off on. More is header lines.
func Head(w io.Writer, off, size int64, more string) {
	if off > 0 {
		_, _ = fmt.Fprintf(w, "HTTP/1.1 206 Partial Content\r\nContent-Range: %s\r\nContent-Length: %d\r\n%s\r\n", httprange.ContentRange(off, size-off, size), size-off, more)
		return
	}
	_, _ = fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n", size, more)
}

// Give answers with b from off on, as if size were the size of the whole.
func Give(w io.Writer, b []byte, off, size int64) {
	Head(w, off, size, "")
	_, _ = w.Write(b[min(off, int64(len(b))):])
}

// Endless writes piece until nobody takes it any more.
func Endless(w io.Writer, piece []byte) {
	for {
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

// Drip writes step bytes at a time, with a pause after each.
func Drip(w io.Writer, b []byte, step int, pause time.Duration) {
	for piece := range slices.Chunk(b, step) {
		if _, err := w.Write(piece); err != nil {
			return
		}
		<-time.After(pause)
	}
}

// Have is the header line of a peer that is still getting a NAR and has n bytes of it.
func Have(n int64) string { return fmt.Sprintf("%s: %d\r\n", wire.HaveHeader, n) }

// LeadTo is a coordinator that tells everybody to follow the first of nodes that has not failed, which
// is said to have half of the form. If form is not nil it is named in place of the one asked for.
func LeadTo(nodes []string, form *nix.Form, size int64) func(lease.Request) lease.Answer {
	return func(r lease.Request) lease.Answer {
		if r.Verb != lease.Ask {
			return lease.Answer{Kind: lease.Noted}
		}
		s := lease.Source{Form: r.Form, Size: r.Size, Bytes: r.Size / 2, Got: r.Size / 2}
		if form != nil {
			s.Form, s.Size, s.Bytes, s.Got = *form, size, size-1, size-1
		}
		for _, node := range nodes {
			if s.Node = NodeID(node); !slices.Contains(r.Failed, s.Node) {
				return lease.Answer{Kind: lease.Follow, Sources: []lease.Source{s}}
			}
		}
		return lease.Answer{Kind: lease.Noted}
	}
}

// NodeID returns the ID by which leases name a peer.
func NodeID(id string) lease.NodeID {
	p, err := peer.Decode(id)
	if err != nil {
		panic(err)
	}
	return lease.NodeID(p)
}

// Say sends a frame over the session to the node.
func (p *Peer) Say(ctx context.Context, kind wire.Kind, body []byte) error {
	if err := p.wait(ctx); err != nil {
		return err
	}
	_ = p.session.SetWriteDeadline(time.Now().Add(timeout))
	_, err := p.session.Write(wire.AppendFrame(nil, kind, body))
	return err
}

// Report tells the node, as coordinator, how far this peer is with a NAR.
func (p *Peer) Report(ctx context.Context, r lease.Request) error {
	if err := p.wait(ctx); err != nil {
		return err
	}
	st, resp, err := p.request(ctx, p.target, http.MethodPost, server.LeasePath, r.Append(nil))
	if err != nil {
		return err
	}
	defer func() { _ = st.Reset() }()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// request sends one request on a stream of its own. The caller resets it.
func (p *Peer) request(ctx context.Context, to peer.ID, method, path string, body []byte) (network.Stream, *http.Response, error) {
	st, err := p.host.NewStream(network.WithNoDial(ctx, "request"), to, httpProtocol)
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://peer"+path, bytes.NewReader(body))
	if err == nil {
		_ = st.SetDeadline(time.Now().Add(timeout))
		err = req.Write(st)
	}
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(bufio.NewReader(st), req)
	}
	if err != nil {
		_ = st.Reset()
		return nil, nil, err
	}
	_ = st.SetDeadline(time.Time{})
	return st, resp, nil
}

// Occupy asks for NARs over count streams at a time and takes 64 KiB of each every 10 s, until ctx
// ends. Answered counts the statuses.
func (p *Peer) Occupy(ctx context.Context, count int, nars []nix.NarHash, answered func(status int)) {
	if p.wait(ctx) != nil {
		return
	}
	for i := range count {
		path := wire.Request{Nar: nars[i%len(nars)]}.Path()
		p.all.Go(func() {
			for ctx.Err() == nil {
				st, resp, err := p.request(ctx, p.target, http.MethodGet, path, nil)
				if err != nil {
					rig.Pause(ctx, 100*time.Millisecond)
					continue
				}
				answered(resp.StatusCode)
				if resp.StatusCode >= http.StatusMultipleChoices {
					err = errors.New(resp.Status)
					rig.Pause(ctx, 100*time.Millisecond)
				}
				for err == nil && ctx.Err() == nil {
					_, err = io.CopyN(io.Discard, resp.Body, 64<<10)
					rig.Pause(ctx, timeout)
				}
				_ = st.Reset()
			}
		})
	}
}

// Asked returns how many requests it got.
func (p *Peer) Asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.asked)
}
