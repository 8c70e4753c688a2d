package mdns

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/source"
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
	// Conditions is told while the port cannot be had, by address family. Nil drops it.
	Conditions *source.Conditions
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
	var all sync.WaitGroup
	all.Go(func() { s.family(ctx, "IPv4", open4) })
	all.Go(func() { s.family(ctx, "IPv6", open6) })
	all.Wait()
	return nil
}

// tryAgain is when a port that could not be had is tried again.
const tryAgain = 30 * time.Second

// family works with one address family until ctx ends.
func (s *Service) family(ctx context.Context, name string, open func(context.Context) (*socket, error)) {
	key := "mdns/" + name
	for ctx.Err() == nil {
		k, err := open(ctx)
		if err == nil {
			s.cfg.Conditions.Over(s.cfg.Log, key)
			err = s.once(ctx, k)
		}
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, syscall.EAFNOSUPPORT) { // a machine without IPv6
			s.cfg.Conditions.Report(s.cfg.Log, key, source.Condition{
				Part: source.PartMDNS,
				Text: fmt.Sprintf("no multicast over %s: %v; peers on the link are not found by it", name, err),
				Hint: "`ss -lunp` shows which program has port 5353; it must share it (SO_REUSEADDR), or name peers with --bootstrap",
			})
		}
		select {
		case <-ctx.Done():
		case <-time.After(tryAgain):
		}
	}
}

// once works with one socket until it fails.
func (s *Service) once(ctx context.Context, k *socket) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	all.Go(func() { cancel(s.listen(ctx, k)) })
	all.Go(func() { s.ask(ctx, k) })
	<-ctx.Done()
	_ = k.conn.Close()
	all.Wait()
	return context.Cause(ctx)
}

// ask sends questions while peers are few, and has the socket follow the links.
func (s *Service) ask(ctx context.Context, k *socket) {
	q, err := query()
	if err != nil {
		return // a constant
	}
	tick := time.NewTicker(settle)
	defer tick.Stop()
	var next time.Time
	wait := askFirst
	for {
		changed := k.follow()
		short := s.cfg.Peers() < enough
		if changed || !short {
			wait = askFirst
		}
		if now := time.Now(); short && (changed || !now.Before(next)) {
			k.multicast(q, 0)
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
