// Package mdns finds nodes on the link by multicast DNS (RFC 6762, RFC 6763), service
// _nixp2p._udp.local. A node asks only while it is short of peers and always answers, and
// in a crowd only some answer: what everybody asks and everybody answers fills a network.
// It dials nobody.
package mdns

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/nixp2p/nixp2p/p2p/discovery"
)

const (
	service = "_nixp2p._udp.local."
	// txtPrefix is that of libp2p's own mDNS records (libp2p specs, discovery/mdns.md).
	txtPrefix = "dnsaddr="

	// maxPacket is the most that is read; what is sent stays far below one frame.
	maxPacket = 9000
	// maxAnswers bounds what is taken of one packet, maxAddrs what one node says of itself.
	maxAnswers = 64
	maxAddrs   = 3
	ttl        = 120 // seconds (RFC 6762 §10)
	// flush is the bit by which a record replaces older ones (RFC 6762 §10.2).
	flush = 1 << 15
)

var errPacket = errors.New("mdns: not a packet for us")

// query returns the question for nodes.
func query() ([]byte, error) {
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(service), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET,
	}}}
	return m.Pack()
}

// answer returns what this node says of itself. id is the legacy querier's, 0 for all others.
func answer(id uint16, instance string, addrs []string) ([]byte, error) {
	name, err := dnsmessage.NewName(instance + "." + service)
	if err != nil {
		return nil, fmt.Errorf("mdns: instance: %w", err)
	}
	var txt []string
	for _, a := range addrs {
		if s := txtPrefix + a; len(s) <= 255 {
			txt = append(txt, s)
		}
	}
	m := dnsmessage.Message{
		Header: dnsmessage.Header{ID: id, Response: true, Authoritative: true},
		Answers: []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(service), Class: dnsmessage.ClassINET, TTL: ttl},
			Body:   &dnsmessage.PTRResource{PTR: name},
		}},
		Additionals: []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET | flush, TTL: ttl},
			Body:   &dnsmessage.TXTResource{TXT: txt},
		}},
	}
	if id != 0 {
		// A querier on another port is not an mDNS program and does not know the flush bit.
		m.Additionals[0].Header.Class = dnsmessage.ClassINET
	}
	return m.Pack()
}

// heard is the content of a packet: a question for nodes, or where some are.
type heard struct {
	asked bool
	id    uint16
	addrs []string
}

// parse reads a packet. Those of other services, which are most, are errPacket.
func parse(b []byte) (h heard, err error) {
	var p dnsmessage.Parser
	head, err := p.Start(b)
	if err != nil {
		return h, fmt.Errorf("%w: %w", errPacket, err)
	}
	if !head.Response {
		return parseQuery(&p, head)
	}
	if err := p.SkipAllQuestions(); err != nil {
		return h, fmt.Errorf("%w: %w", errPacket, err)
	}
	sections := []struct {
		next func() (dnsmessage.ResourceHeader, error)
		skip func() error
	}{{p.AnswerHeader, p.SkipAnswer}, {p.AuthorityHeader, p.SkipAuthority}, {p.AdditionalHeader, p.SkipAdditional}}
	n := 0
	for _, s := range sections {
		for {
			rr, err := s.next()
			if errors.Is(err, dnsmessage.ErrSectionDone) {
				break
			}
			if n++; err != nil || n > maxAnswers {
				return heard{}, fmt.Errorf("%w: records", errPacket)
			}
			if rr.Type != dnsmessage.TypeTXT || !ours(rr.Name.String()) {
				if err := s.skip(); err != nil {
					return heard{}, fmt.Errorf("%w: %w", errPacket, err)
				}
				continue
			}
			txt, err := p.TXTResource()
			if err != nil {
				return heard{}, fmt.Errorf("%w: %w", errPacket, err)
			}
			h.addrs = append(h.addrs, addrsOf(txt.TXT)...)
		}
	}
	if len(h.addrs) == 0 {
		return heard{}, errPacket
	}
	return h, nil
}

func parseQuery(p *dnsmessage.Parser, head dnsmessage.Header) (heard, error) {
	for range maxAnswers {
		q, err := p.Question()
		if err != nil {
			return heard{}, errPacket
		}
		any := q.Type == dnsmessage.TypePTR || q.Type == dnsmessage.TypeALL
		if any && strings.EqualFold(q.Name.String(), service) {
			return heard{asked: true, id: head.ID}, nil
		}
	}
	return heard{}, errPacket
}

// ours reports whether name is an instance of the service.
func ours(name string) bool {
	n := len(name) - len(service) - 1
	return n > 0 && name[n] == '.' && strings.EqualFold(name[n+1:], service)
}

func addrsOf(txt []string) (addrs []string) {
	for _, s := range txt {
		a, ok := strings.CutPrefix(s, txtPrefix)
		if ok && len(addrs) < 2*maxAddrs && strings.HasPrefix(a, "/") && strings.Contains(a, "/p2p/") {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// addresses returns the multiaddrs under which this node, listening on listens, is reached
// on a link whose addresses are given, best first. IPv6 link-local ones are left out: libp2p
// dials none.
func addresses(id string, listens []netip.AddrPort, link []netip.Addr) (addrs []string) {
	for _, a := range link {
		for _, l := range listens {
			same := l.Addr().Is4() == a.Is4() && l.Addr().IsUnspecified() || l.Addr() == a
			dialable := !a.Is6() || !a.IsLinkLocalUnicast()
			if same && dialable && len(addrs) < maxAddrs {
				addrs = append(addrs, discovery.Multiaddr(netip.AddrPortFrom(a, l.Port()))+"/p2p/"+id)
			}
		}
	}
	return addrs
}
