package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	ofNames       = "Name servers"
	ofConnections = "Connections and TLS"
	ofProxies     = "Proxies"
	ofAuthorities = "Certificate authorities"
	ofCredentials = "netrc-file"
	ofDirectories = "Caches in directories"
)

func ways() (all []*way) {
	for _, g := range []struct {
		name string
		ways []*way
	}{{ofNames, nameWays()}, {ofConnections, connectionWays()}, {ofProxies, proxyWays()}, {ofAuthorities, authorityWays()}, {ofCredentials, credentialWays()}, {ofDirectories, directoryWays()}} {
		for _, y := range g.ways {
			y.group, y.known = g.name, known()[y.name]
		}
		all = append(all, g.ways...)
	}
	return all
}

// known says why nixp2p may get less than Nix.
func known() map[string]string {
	return map[string]string{
		"TLS 1.0": "not accepted (RFC 8996)",
		"certificate with the name in its subject only":  "not accepted (RFC 9525)",
		"TCP: the same for 6 s":                          "2 s are waited for a connection, twice",
		"file: NAR URL: ../X, outside":                   "a name does not lead out of the directory; a link may",
		"file: ?trusted=1, narinfos without a signature": "nothing unsigned is served",
	}
}

// right is a name server as it should be: the cache has an address of IPv4.
func right(asked, *dnsmessage.Message) time.Duration { return 0 }

// says is one that answers with a code.
func says(code dnsmessage.RCode) habit {
	return func(_ asked, m *dnsmessage.Message) time.Duration {
		m.RCode, m.Answers = code, nil
		return 0
	}
}

// slowly is one that is right, later.
func slowly(d time.Duration) habit {
	return func(asked, *dnsmessage.Message) time.Duration { return d }
}

// until is one that does something else at first.
func until(d time.Duration, first habit) habit {
	return func(a asked, m *dnsmessage.Message) time.Duration {
		if a.since < d {
			return first(a, m)
		}
		return 0
	}
}

// six is one that has something else to say about IPv6.
func six(h habit) habit {
	return func(a asked, m *dnsmessage.Message) time.Duration {
		if a.v6 {
			return h(a, m)
		}
		return 0
	}
}

func mute(asked, *dnsmessage.Message) time.Duration { return never }

// has is one that knows these addresses.
func has(ips ...string) habit {
	return func(a asked, m *dnsmessage.Message) time.Duration {
		m.Answers = nil
		for _, ip := range ips {
			if (net.ParseIP(ip).To4() == nil) == a.v6 {
				address(m, ip)
			}
		}
		return 0
	}
}

func truncated(a asked, m *dnsmessage.Message) time.Duration {
	if !a.tcp {
		m.Truncated, m.Answers = true, nil
	}
	return 0
}

func nameWays() []*way {
	lossy := func(every int) habit {
		return func(a asked, _ *dnsmessage.Message) time.Duration {
			if a.nth%every != 0 {
				return never
			}
			return 0
		}
	}
	one := func(name string, quick bool, h ...habit) *way { return &way{name: name, quick: quick, names: h} }
	first := func(name, server string) *way {
		return &way{name: name, resolv: "nameserver " + server + "\nnameserver 127.0.1.1\n"}
	}
	edns := func(h habit) habit {
		return func(a asked, m *dnsmessage.Message) time.Duration {
			if a.edns {
				return h(a, m)
			}
			return 0
		}
	}
	file := func(name, text string, h ...habit) *way { return &way{name: name, resolv: text, names: h, quick: true} }
	local := func(name, host string) *way {
		return &way{name: name, quick: strings.Contains(name, "below"), gate: func(g *gates) string { return "http://" + host + ":" + g.plain() }}
	}
	all := []*way{
		one("nothing (for comparison)", true, right),
		first("the first server is silent", noAnswer),
		first("the first server's port is closed", "127.0.1.9"),
		first("there is no route to the first server", noRoute),
		{name: "two of three servers are silent", resolv: "nameserver " + noAnswer + "\nnameserver " + noAnswer + "\nnameserver 127.0.1.1\n"},
		{name: "the only server is silent", resolv: "nameserver " + noAnswer + "\n"},
		{name: "there is no server", resolv: "# none\n", quick: true},
		one("the first server: SERVFAIL", true, says(dnsmessage.RCodeServerFailure), right),
		one("the first server: REFUSED", false, says(dnsmessage.RCodeRefused), right),
		one("the first server: NOTIMP", false, says(dnsmessage.RCodeNotImplemented), right),
		one("the first server: an answer without records", true, has(), right),
		one("the only server: SERVFAIL for 3 s", false, until(3*time.Second, says(dnsmessage.RCodeServerFailure))),
		one("the only server: NXDOMAIN for 1 s", false, until(time.Second, says(dnsmessage.RCodeNameError))),
		one("the only server: NXDOMAIN for 3 s", false, until(3*time.Second, says(dnsmessage.RCodeNameError))),
		one("the only server: silent for 7 s", false, until(7*time.Second, mute)),
		one("answers come after 1 s", false, slowly(time.Second)),
		one("answers come after 3 s", false, slowly(3*time.Second)),
		one("answers come after 6 s", false, slowly(6*time.Second)),
		one("every other question is lost", false, lossy(2)),
		one("two of three questions are lost", false, lossy(3)),
		one("AAAA: no answer", false, six(mute)),
		one("AAAA: an answer after 4 s", false, six(slowly(4*time.Second))),
		one("AAAA: SERVFAIL", true, six(says(dnsmessage.RCodeServerFailure))),
		one("AAAA: NXDOMAIN", false, six(says(dnsmessage.RCodeNameError))),
		one("AAAA: NOTIMP", false, six(says(dnsmessage.RCodeNotImplemented))),
		one("AAAA: packets to it are lost", true, has(noAnswer6, "127.0.0.1")),
		one("AAAA: no route to it", false, has("2001:db8:1::1", "127.0.0.1")),
		one("AAAA: its port is closed", false, has("::1", "127.0.0.1")),
		one("A: packets to the first of two are lost", true, has(noAnswer, "127.0.0.1")),
		one("A: the first of two refuses", false, has("127.0.0.9", "127.0.0.1")),
		one("A: three of four are dead", false, has(noAnswer, "127.0.0.9", noRoute, "127.0.0.1")),
		one("UDP: truncated, TCP: right", true, truncated),
		one("the first server: truncated, and its TCP is silent", false, func(a asked, m *dnsmessage.Message) time.Duration {
			if a.tcp {
				return never
			}
			return truncated(a, m)
		}, right),
		one("40 addresses", true, func(a asked, m *dnsmessage.Message) time.Duration {
			for i := range 39 {
				if !a.v6 {
					address(m, fmt.Sprintf("127.0.0.%d", i+2))
				}
			}
			return 0
		}),
		one("EDNS: FORMERR", true, edns(func(_ asked, m *dnsmessage.Message) time.Duration {
			m.RCode, m.Answers, m.Questions = dnsmessage.RCodeFormatError, nil, nil
			return 0
		})),
		one("EDNS: NOTIMP", false, edns(says(dnsmessage.RCodeNotImplemented))),
		one("EDNS: no answer", false, edns(mute)),
		one("an alias of an alias", true, alias),
		file("a search domain, options timeout and rotate", "search corp.test\noptions ndots:2 timeout:1 attempts:1 rotate\nnameserver 127.0.1.1\nnameserver 127.0.1.2\n", right, right),
		file("options single-request, edns0, use-vc, trust-ad", "options single-request edns0 use-vc trust-ad\nnameserver 127.0.1.1\n"),
		file("resolv.conf with tabs, comments, CRLF, an IPv6 server that is silent behind", "; a\n# b\nnameserver\t127.0.1.1 \r\nnameserver "+noAnswer6+"\n"),
		local("a name below localhost", "cache.localhost"),
		local("localhost", "localhost"),
		local("a dot behind the name", cacheName+"."),
		local("capitals in the name", strings.ToUpper(cacheName)),
		local("an address in short", "127.1"),
		local("an address as one number", "2130706433"),
		local("an address in octal and hexadecimal", "0177.0x1"),
	}
	return append(all, oddAnswers()...)
}

// oddAnswers have name servers whose answers are not what is expected.
func oddAnswers() []*way {
	one := func(name string, h ...habit) *way { return &way{name: name, names: h} }
	bare := func(a asked, m *dnsmessage.Message) time.Duration {
		alias(a, m)
		m.Answers = m.Answers[:min(len(m.Answers), 2)]
		return 0
	}
	onlySix := func(name string, h habit) *way {
		return &way{name: name, names: []habit{h}, gate: func(g *gates) string { return "http://" + cacheName + ":" + g.six() }}
	}
	return []*way{
		one("UDP: truncated with half of the answer, TCP: right", func(a asked, m *dnsmessage.Message) time.Duration {
			if !a.tcp {
				m.Truncated, m.Answers = true, nil
				address(m, noAnswer)
			}
			return 0
		}),
		one("the answer to another question first", func(a asked, m *dnsmessage.Message) time.Duration {
			if a.nth == 1 {
				m.ID++
			}
			return 0
		}),
		one("the answer has another name in its question, first", func(a asked, m *dnsmessage.Message) time.Duration {
			if a.nth == 1 {
				m.Questions = []dnsmessage.Question{{Name: dnsmessage.MustNewName("other.test."), Type: m.Questions[0].Type, Class: dnsmessage.ClassINET}}
			}
			return 0
		}),
		one("an alias that leads to itself", func(_ asked, m *dnsmessage.Message) time.Duration {
			name := m.Questions[0].Name
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 60}, Body: &dnsmessage.CNAMEResource{CNAME: name},
			}}
			return 0
		}),
		one("an alias without an address", bare),
		one("the first server: an alias without an address", bare, right),
		onlySix("an address of IPv6 only", has("::1")),
		onlySix("an address of IPv6 only, A: SERVFAIL", func(a asked, m *dnsmessage.Message) time.Duration {
			if !a.v6 {
				return says(dnsmessage.RCodeServerFailure)(a, m)
			}
			return has("::1")(a, m)
		}),
		onlySix("an address of IPv6 only, A: no answer", func(a asked, m *dnsmessage.Message) time.Duration {
			if !a.v6 {
				return never
			}
			return has("::1")(a, m)
		}),
		one("no recursion, and the answer all the same", func(_ asked, m *dnsmessage.Message) time.Duration {
			m.RecursionAvailable = false
			return 0
		}),
		one("the first server: no recursion, no answer", func(_ asked, m *dnsmessage.Message) time.Duration {
			m.RecursionAvailable, m.Answers = false, nil
			return 0
		}, right),
		one("a record of an unknown type before the address", func(_ asked, m *dnsmessage.Message) time.Duration {
			odd := dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60},
				Body:   &dnsmessage.UnknownResource{Type: 46, Data: []byte("signed")},
			}
			m.Answers = append([]dnsmessage.Resource{odd}, m.Answers...)
			return 0
		}),
		one("the address 0.0.0.0", has("0.0.0.0")),
	}
}

// alias is a name server that leads to another name first.
func alias(a asked, m *dnsmessage.Message) time.Duration {
	was, at := m.Answers, m.Questions[0].Name
	m.Answers = nil
	for i := range 2 {
		to := dnsmessage.MustNewName(fmt.Sprintf("edge%d.cdn.test.", i))
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: at, Class: dnsmessage.ClassINET, TTL: 60}, Body: &dnsmessage.CNAMEResource{CNAME: to},
		})
		at = to
	}
	for _, r := range was {
		r.Header.Name = at
		m.Answers = append(m.Answers, r)
	}
	return 0
}

func connectionWays() []*way {
	first := func(n int, c func(net.Conn)) func(g *gates) string {
		return func(g *gates) string {
			return "http://" + cacheName + ":" + g.before(g.plain(), func(nth int, conn net.Conn) bool {
				if nth <= n {
					c(conn)
					return false
				}
				return true
			})
		}
	}
	hang := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	reset := func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }
	after := func(d time.Duration, https bool) func(g *gates) string {
		return func(g *gates) string {
			wait := func(int, net.Conn) bool { time.Sleep(d); return true }
			if https {
				return "https://" + cacheName + ":" + g.before(g.secure(serverConfig(g.ca.issue(nil))), wait)
			}
			return "http://" + cacheName + ":" + g.before(g.plain(), wait)
		}
	}
	full := func(d time.Duration) func(g *gates) string {
		return func(g *gates) string { return "http://" + cacheName + ":" + g.full(d) }
	}
	with := func(name string, quick bool, gate func(g *gates) string) *way {
		return &way{name: name, quick: quick, gate: gate, env: trusting}
	}
	secure := func(name string, edit func(*tls.Config)) *way {
		return with(name, true, func(g *gates) string {
			cfg := serverConfig(g.ca.issue(nil))
			edit(cfg)
			return "https://" + cacheName + ":" + g.secure(cfg)
		})
	}
	issued := func(name string, edit func(*x509.Certificate)) *way {
		return with(name, true, func(g *gates) string {
			return "https://" + cacheName + ":" + g.secure(serverConfig(g.ca.issue(edit)))
		})
	}
	return []*way{
		with("TCP: the first packet of each connection is lost for 0.5 s", false, full(500*time.Millisecond)),
		with("TCP: the same for 2.5 s", false, full(2500*time.Millisecond)),
		with("TCP: the same for 6 s", false, full(6*time.Second)),
		with("the first connection is closed", true, first(1, func(net.Conn) {})),
		with("the first connection is reset", true, first(1, reset)),
		with("the first three connections are reset", true, first(3, reset)),
		with("the first connection is silent", false, first(1, hang)),
		with("each connection is silent for 1 s", false, after(time.Second, false)),
		with("each connection is silent for 3 s", false, after(3*time.Second, false)),
		with("TLS: the handshake takes 1 s", false, after(time.Second, true)),
		with("TLS: the handshake takes 4 s", false, after(4*time.Second, true)),
		with("TLS: the handshake takes 7 s", false, after(7*time.Second, true)),
		secure("TLS 1.2, HTTP/1.1", func(c *tls.Config) { c.MaxVersion, c.NextProtos = tls.VersionTLS12, nil }),
		secure("TLS 1.2, RSA without Diffie-Hellman", func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
		}),
		secure("TLS 1.2, RSA, CBC", func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}
		}),
		secure("TLS 1.0", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }),
		secure("the server wants a certificate of the client", func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }),
		secure("the server breaks the first handshake off", func(c *tls.Config) {
			var once sync.Once
			c.GetConfigForClient = func(*tls.ClientHelloInfo) (_ *tls.Config, err error) {
				once.Do(func() { err = errors.New("not now") })
				return nil, err
			}
		}),
		{name: "a certificate for an address", env: trusting, gate: func(g *gates) string {
			return "https://127.0.0.1:" + g.secure(serverConfig(g.ca.issue(func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)} })))
		}},
		{name: "an address as a name in the certificate", env: trusting, gate: func(g *gates) string {
			return "https://127.0.0.1:" + g.secure(serverConfig(g.ca.issue(func(c *x509.Certificate) { c.DNSNames = []string{"127.0.0.1"} })))
		}},
		issued("certificate for *.corp.test", func(c *x509.Certificate) { c.DNSNames = []string{"*.corp.test"} }),
		issued("certificate with the name in its subject only", func(c *x509.Certificate) { c.DNSNames = nil }),
		issued("certificate for another name", func(c *x509.Certificate) { c.DNSNames = []string{"other.test"} }),
		issued("certificate that has expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
		issued("certificate without purposes", func(c *x509.Certificate) { c.KeyUsage, c.ExtKeyUsage = 0, nil }),
	}
}

func serverConfig(cert tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
}

// trusting is the environment of those who know the authority.
func trusting(g *gates, file func(name, text string) string) []string {
	return []string{"NIX_SSL_CERT_FILE=" + file("ca.pem", g.ca.block("CERTIFICATE"))}
}
