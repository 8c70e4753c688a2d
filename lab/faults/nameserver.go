package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// cacheName is the name of the cache in the tables about the way to it.
const cacheName = "cache.corp.test"

// asked is a question to a name server.
type asked struct {
	name  string // with a dot at the end
	v6    bool   // AAAA, else A
	nth   int    // how often it has been asked, with this one
	tcp   bool
	edns  bool          // with an OPT record
	since time.Duration // the first question of all
}

// habit is what a name server does with a question. m is the right answer, which it may change;
// it is sent after the duration that is returned, never if that is negative.
type habit func(a asked, m *dnsmessage.Message) time.Duration

const never = time.Duration(-1)

// servers are name servers while one command runs.
type servers struct {
	ends  []io.Closer
	tasks sync.WaitGroup

	mu    sync.Mutex
	began time.Time
	count map[string]int
}

// startServers starts one name server for each habit, from 127.0.1.1 on.
func startServers(habits []habit) (*servers, error) {
	s := &servers{count: map[string]int{}}
	for i, h := range habits {
		addr := net.JoinHostPort(fmt.Sprintf("127.0.1.%d", i+1), "53")
		udp, err := net.ListenPacket("udp4", addr)
		if err != nil {
			s.close()
			return nil, err
		}
		s.ends = append(s.ends, udp)
		tcp, err := net.Listen("tcp4", addr)
		if err != nil {
			s.close()
			return nil, err
		}
		s.ends = append(s.ends, tcp)
		s.tasks.Go(func() { s.serveUDP(udp, i, h) })
		s.tasks.Go(func() { s.serveTCP(tcp, i, h) })
	}
	return s, nil
}

func (s *servers) close() {
	for _, c := range s.ends {
		_ = c.Close()
	}
	s.tasks.Wait()
}

func (s *servers) serveUDP(c net.PacketConn, i int, h habit) {
	buf := make([]byte, 4096)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		m, after := s.answer(buf[:n], i, false, h)
		if m == nil || after < 0 {
			continue
		}
		time.AfterFunc(after, func() {
			if packed, err := m.Pack(); err == nil {
				_, _ = c.WriteTo(packed, from)
			}
		})
	}
}

func (s *servers) serveTCP(l net.Listener, i int, h habit) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.tasks.Go(func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			for { // several questions may come over one connection
				var size uint16
				if binary.Read(c, binary.BigEndian, &size) != nil {
					return
				}
				q := make([]byte, size)
				if _, err := io.ReadFull(c, q); err != nil {
					return
				}
				m, after := s.answer(q, i, true, h)
				if m == nil || after < 0 {
					continue
				}
				if packed, err := m.Pack(); err == nil {
					_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...))
				}
			}
		})
	}
}

// answer returns what server i says, nil for what is no question.
func (s *servers) answer(text []byte, i int, tcp bool, h habit) (*dnsmessage.Message, time.Duration) {
	var q dnsmessage.Message
	if q.Unpack(text) != nil || len(q.Questions) != 1 {
		return nil, 0
	}
	ask := q.Questions[0]
	a := asked{name: strings.ToLower(ask.Name.String()), v6: ask.Type == dnsmessage.TypeAAAA, tcp: tcp, edns: len(q.Additionals) > 0}
	s.mu.Lock()
	if s.began.IsZero() {
		s.began = time.Now()
	}
	a.since = time.Since(s.began)
	key := fmt.Sprint(i, a.name, ask.Type)
	s.count[key]++
	a.nth = s.count[key]
	s.mu.Unlock()

	m := &dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, RecursionDesired: true, RecursionAvailable: true},
		Questions: q.Questions,
	}
	if a.name != cacheName+"." {
		m.RCode = dnsmessage.RCodeNameError
	} else if ask.Type == dnsmessage.TypeA {
		address(m, "127.0.0.1")
	}
	after := h(a, m)
	if packed, err := m.Pack(); err == nil && len(packed) > 512 && !tcp && !a.edns {
		m.Truncated, m.Answers = true, nil
	}
	return m, after
}

// address adds a record for the name that was asked for.
func address(m *dnsmessage.Message, ip string) {
	head := dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60}
	if four := net.ParseIP(ip).To4(); four != nil {
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: [4]byte(four)}})
		return
	}
	m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: [16]byte(net.ParseIP(ip))}})
}

// resolvConf is the file that says which name servers there are, in the namespace.
type resolvConf string

// mountResolvConf puts one file in the place of /etc/resolv.conf, for this machine's programs and for
// those of the trees. The namespace ends with the program.
func mountResolvConf(dir string, nixes []*realnix.Nix) (resolvConf, error) {
	name := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		return "", err
	}
	for _, n := range nixes {
		at := filepath.Join("/", n.Chroot, "etc/resolv.conf")
		if err := syscall.Mount(name, at, "", syscall.MS_BIND, ""); err != nil {
			return "", fmt.Errorf("mount %s: %w", at, err)
		}
	}
	return resolvConf(name), nil
}

func (r resolvConf) set(text string) error { return os.WriteFile(string(r), []byte(text), 0o644) }
