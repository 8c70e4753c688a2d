package mdns

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/p2p/netif"
)

// Config says how a Service works.
type Config struct {
	// ID is this node's peer ID, Listens returns where it listens, unspecified addresses
	// included.
	ID      string
	Listens func() []netip.AddrPort
	// Peers is how many are connected: with few, nodes are asked for.
	Peers func() int
	// Found is given addresses with peer IDs that were heard, this node's own as well. It
	// must not block for long.
	Found func(addrs []string)
	Log   *slog.Logger // nil discards
}

const (
	// With enough peers no more are asked for.
	enough = 4
	// crowd is how many answers a question should get where there are more nodes.
	crowd = 8

	// The next question comes after askFirst, then ever later, up to askLast.
	askFirst = time.Second
	askLast  = time.Minute
	// settle is how often links are looked at: addresses come with DHCP, VPNs and resume.
	settle = 2 * time.Second
	// An answer waits a little, so that not all nodes speak at once, and each link gets
	// one in answerEvery (RFC 6762 §6).
	answerDelay = 100 * time.Millisecond
	answerEvery = time.Second
)

// Service asks and answers while it runs.
type Service struct {
	cfg      Config
	instance string
}

// New returns a Service.
func New(cfg Config) (*Service, error) {
	if cfg.ID == "" || cfg.Listens == nil || cfg.Peers == nil || cfg.Found == nil {
		return nil, errors.New("mdns: incomplete configuration")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	var b [8]byte // a name that says nothing (libp2p specs)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return &Service{cfg: cfg, instance: hex.EncodeToString(b[:])}, nil
}

// Run asks and answers until ctx ends. Links that come and go are followed; a machine
// without any waits for one. Lack of permission or a taken port ends nothing either: it is
// tried again, and the node lives without.
func (s *Service) Run(ctx context.Context) error {
	warned := false
	for ctx.Err() == nil {
		err := s.once(ctx)
		if ctx.Err() != nil {
			break
		}
		if !warned {
			warned = true
			s.cfg.Log.Warn("no multicast, will try again", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(30 * time.Second):
		}
	}
	return nil
}

// once works with one set of sockets until one of them fails.
func (s *Service) once(ctx context.Context) error {
	var socks []*socket
	var errs []error
	for _, open := range []func(context.Context) (*socket, error){open4, open6} {
		k, err := open(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		socks = append(socks, k)
	}
	if len(socks) == 0 {
		return errors.Join(errs...)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	for _, k := range socks {
		all.Go(func() { cancel(s.listen(ctx, k)) })
	}
	all.Go(func() { s.ask(ctx, socks) })
	<-ctx.Done()
	for _, k := range socks {
		_ = k.conn.Close()
	}
	all.Wait()
	return context.Cause(ctx)
}

// ask sends questions while peers are few, and has the sockets follow the links.
func (s *Service) ask(ctx context.Context, socks []*socket) {
	q, err := query()
	if err != nil {
		return // a constant
	}
	tick := time.NewTicker(settle)
	defer tick.Stop()
	var next time.Time
	wait := askFirst
	for {
		changed := false
		for _, k := range socks {
			changed = k.follow() || changed
		}
		short := s.cfg.Peers() < enough
		if changed || !short {
			wait = askFirst
		}
		if now := time.Now(); short && (changed || !now.Before(next)) {
			for _, k := range socks {
				k.multicast(q, 0)
			}
			next = now.Add(wait)
			wait = min(2*wait, askLast)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// listen takes packets from one socket.
func (s *Service) listen(ctx context.Context, k *socket) error {
	var answers sync.WaitGroup
	defer answers.Wait()
	answered := map[int]time.Time{}
	buf := make([]byte, maxPacket)
	for {
		n, link, from, err := k.read(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return err
			}
			s.cfg.Log.Debug("multicast read", "err", err)
			return err
		}
		h, err := parse(buf[:n])
		addrs, known := k.link(link)
		if err != nil || !known || !local(from.Addr(), addrs) {
			continue
		}
		if !h.asked {
			s.cfg.Found(h.addrs)
			continue
		}
		now := time.Now()
		if now.Sub(answered[link]) < answerEvery || rand.IntN(max(s.cfg.Peers(), crowd)) >= crowd {
			continue
		}
		answered[link] = now
		answers.Go(func() { s.reply(ctx, k, link, from, h.id) })
	}
}

// local reports whether a packet comes from this link. Others are dropped: each one that is
// believed causes a dial.
func local(from netip.Addr, link []netip.Prefix) bool {
	from = from.Unmap().WithZone("")
	if from.IsLinkLocalUnicast() {
		return true
	}
	for _, p := range link {
		if p.Contains(from) {
			return true
		}
	}
	return false
}

func (s *Service) reply(ctx context.Context, k *socket, link int, from netip.AddrPort, id uint16) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(rand.N(answerDelay)):
	}
	prefixes, ok := k.link(link)
	addrs := addresses(s.cfg.ID, s.cfg.Listens(), netif.Advertised([]netif.Link{{Prefixes: prefixes}}))
	if !ok || len(addrs) == 0 {
		return
	}
	legacy := from.Port() != port
	if !legacy {
		id = 0
	}
	b, err := answer(id, s.instance, addrs)
	switch {
	case err != nil:
		s.cfg.Log.Debug("multicast answer", "err", err)
	case legacy:
		k.unicast(b, from)
	default:
		k.multicast(b, link)
	}
}
