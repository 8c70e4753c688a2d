package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// proxyWays have a cache whose name only the proxy knows, then noProxyWays.
func proxyWays() (all []*way) {
	none := "# none\n"
	through := func(name string, https bool, env func(g *gates, plain, secure string) []string) {
		scheme := map[bool]string{true: "https", false: "http"}[https]
		var plain, secure string
		all = append(all, &way{
			name: name, quick: len(all)%5 == 0 && !strings.Contains(name, "silent"), resolv: none,
			gate: func(g *gates) string {
				plain, secure = g.plain(), g.secure(serverConfig(g.ca.issue(nil)))
				return scheme + "://" + cacheName + ":" + map[bool]string{true: secure, false: plain}[https]
			},
			env: func(g *gates, file func(name, text string) string) []string {
				return append(env(g, plain, secure), trusting(g, file)...)
			},
		})
	}
	for _, p := range []struct {
		name  string
		https bool
	}{
		{"http_proxy", false}, {"https_proxy", true}, {"HTTPS_PROXY", true}, {"all_proxy", false}, {"all_proxy", true},
		{"ALL_PROXY", false}, {"ALL_PROXY", true}, {"HTTP_PROXY", false},
	} {
		to := map[bool]string{true: "https", false: "http"}[p.https]
		through(p.name+"=http://HOST:PORT, to "+to, p.https, func(g *gates, plain, secure string) []string {
			return []string{p.name + "=http://127.0.0.1:" + g.proxy(plain, secure, "")}
		})
	}
	for _, form := range []struct{ name, before, after string }{
		{"HOST:PORT", "127.0.0.1:", ""}, {"http://HOST:PORT/", "http://127.0.0.1:", "/"}, {"HTTP://HOST:PORT", "HTTP://127.0.0.1:", ""},
		{"http://localhost:PORT", "http://localhost:", ""}, {"http://[::ffff:127.0.0.1]:PORT", "http://[::ffff:127.0.0.1]:", ""},
		{"http://USER:PASSWORD@HOST:PORT", "http://me:p%40ss@127.0.0.1:", ""}, {"//HOST:PORT", "//127.0.0.1:", ""},
		{"http:HOST:PORT", "http:127.0.0.1:", ""}, {"' http://HOST:PORT'", " http://127.0.0.1:", ""},
		{"http://127.1:PORT", "http://127.1:", ""}, {"http://HOST:PORT/path?query", "http://127.0.0.1:", "/path?query"},
	} {
		through("all_proxy="+form.name, true, func(g *gates, plain, secure string) []string {
			user := map[bool]string{true: "me:p@ss"}[strings.Contains(form.before, "@")]
			return []string{"all_proxy=" + form.before + g.proxy(plain, secure, user) + form.after}
		})
	}
	through("all_proxy=https://HOST:PORT", true, func(g *gates, plain, secure string) []string {
		l, err := tls.Listen("tcp4", "127.0.0.1:0", serverConfig(g.ca.issue(func(c *x509.Certificate) {
			c.DNSNames, c.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)}
		})))
		if err != nil {
			panic(err)
		}
		return []string{"all_proxy=https://127.0.0.1:" + g.proxyAt(l, plain, secure, "")}
	})
	for _, scheme := range []string{"socks5h", "socks5", "socks4a", "socks4", "socks", "SOCKS5H"} {
		through("all_proxy="+scheme+"://HOST:PORT", false, func(g *gates, plain, _ string) []string {
			return []string{"all_proxy=" + scheme + "://127.0.0.1:" + g.socks(plain, "")}
		})
	}
	all = append(all, guardedProxies()...)
	through("http_proxy is right, all_proxy is dead", false, func(g *gates, plain, secure string) []string {
		return []string{"all_proxy=http://127.0.0.9:9", "http_proxy=http://127.0.0.1:" + g.proxy(plain, secure, "")}
	})
	through("https_proxy is right, HTTPS_PROXY is dead", true, func(g *gates, plain, secure string) []string {
		return []string{"HTTPS_PROXY=http://127.0.0.9:9", "https_proxy=http://127.0.0.1:" + g.proxy(plain, secure, "")}
	})
	through("an empty http_proxy, all_proxy", false, func(g *gates, plain, secure string) []string {
		return []string{"http_proxy=", "all_proxy=http://127.0.0.1:" + g.proxy(plain, secure, "")}
	})
	illProxies(through)
	return append(all, noProxyWays()...)
}

// guardedProxies are SOCKS proxies that want to know who asks. They know the cache's name, and so does
// this machine, as with socks5 and socks4 curl looks it up itself.
func guardedProxies() (all []*way) {
	for _, c := range []struct{ scheme, says, wants string }{
		{"socks5h", "me:p%40ss@", "me:p@ss"}, {"socks5", "me:p%40ss@", "me:p@ss"}, {"socks5h", "me:pass@", "me:pass"},
		{"socks5h", "me:@", "me:"}, {"socks5h", "me@", "me:"}, {"socks5h", "d%5Cme:a%3Ab@", `d\me:a:b`},
		{"socks5h", "me:no@", "me:pass"}, {"socks5h", "", "me:pass"}, {"socks5h", "me:pass@", ""},
		{"socks4a", "me@", "me"}, {"socks4", "me@", "me"}, {"socks4a", "me:pass@", "me"}, {"socks4", "m%40e@", "m@e"}, {"socks4a", "", "me"}, {"socks", "me@", "me"},
	} {
		name := fmt.Sprintf("all_proxy=%s://%sHOST:PORT, which wants %s", c.scheme, c.says, cmp.Or(c.wants, "nobody's name"))
		all = append(all, &way{name: name, quick: len(all) == 0, env: func(g *gates, _ func(name, text string) string) []string {
			return []string{"all_proxy=" + c.scheme + "://" + c.says + "127.0.0.1:" + g.socks(g.plain(), c.wants)}
		}})
	}
	return all
}

// illProxies adds proxies that do not do what they should.
func illProxies(through func(name string, https bool, env func(g *gates, plain, secure string) []string)) {
	for _, status := range []int{http.StatusForbidden, http.StatusProxyAuthRequired, http.StatusBadGateway} {
		for _, https := range []bool{false, true} {
			to := map[bool]string{true: "https", false: "http"}[https]
			through(fmt.Sprintf("all_proxy answers %d, to %s", status, to), https, func(g *gates, _, _ string) []string {
				return []string{"all_proxy=http://127.0.0.1:" + g.answering(status)}
			})
		}
	}
	through("all_proxy is silent", true, func(g *gates, _, _ string) []string {
		return []string{"all_proxy=http://127.0.0.1:" + g.listen(func(_ int, c net.Conn) { _, _ = io.Copy(io.Discard, c) })}
	})
	through("all_proxy is silent at its first connection", true, func(g *gates, plain, secure string) []string {
		return []string{"all_proxy=http://127.0.0.1:" + g.before(g.proxy(plain, secure, ""), func(nth int, c net.Conn) bool {
			if nth == 1 {
				_, _ = io.Copy(io.Discard, c)
			}
			return nth > 1
		})}
	})
}

// noProxyWays have a proxy that is dead, and a cache that is to be reached without it.
func noProxyWays() (all []*way) {
	for _, list := range []string{
		cacheName, "corp.test", ".corp.test", "*", "CACHE.CORP.TEST", "other.test, corp.test", "other.test corp.test",
		"127.0.0.1", "*.corp.test", "test.", "orp.test", cacheName + ":80",
	} {
		all = append(all, &way{name: "all_proxy is dead, no_proxy=" + list, quick: len(all)%6 == 0, env: func(*gates, func(name, text string) string) []string {
			return []string{"all_proxy=http://127.0.0.9:9", "no_proxy=" + list}
		}})
	}
	for _, list := range []string{"127.0.0.0/8", "127.0.0.1", "127.0.0.1:PORT"} {
		all = append(all, &way{
			name: "all_proxy is dead, no_proxy=" + list + ", cache by address",
			gate: func(g *gates) string { return "http://127.0.0.1:" + g.plain() },
			env: func(*gates, func(name, text string) string) []string {
				return []string{"all_proxy=http://127.0.0.9:9", "no_proxy=" + list}
			},
		})
	}
	for _, list := range []string{"::1", "[::1]", "::/0", "fd00::/8, ::1"} {
		all = append(all, &way{
			name: "all_proxy is dead, no_proxy=" + list + ", cache by an IPv6 address",
			gate: func(g *gates) string { return "http://[::1]:" + g.six() },
			env: func(*gates, func(name, text string) string) []string {
				return []string{"all_proxy=http://127.0.0.9:9", "no_proxy=" + list}
			},
		})
	}
	all = append(all, &way{
		name: "all_proxy is dead, no_proxy=localhost, cache at localhost",
		gate: func(g *gates) string { return "http://localhost:" + g.plain() },
		env: func(*gates, func(name, text string) string) []string {
			return []string{"all_proxy=http://127.0.0.9:9", "no_proxy=localhost"}
		},
	})
	return all
}

func authorityWays() (all []*way) {
	add := func(name string, env, conf func(g *gates, file func(name, text string) string) []string) {
		all = append(all, &way{
			name: name, quick: len(all)%3 == 0, env: env, conf: conf,
			gate: func(g *gates) string {
				return "https://" + cacheName + ":" + g.secure(serverConfig(g.ca.issue(nil)))
			},
		})
	}
	for _, v := range []string{"NIX_SSL_CERT_FILE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"} {
		add(v, func(g *gates, file func(name, text string) string) []string {
			return []string{v + "=" + file("ca.pem", g.ca.block("CERTIFICATE"))}
		}, nil)
	}
	add("ssl-cert-file in nix.conf", nil, func(g *gates, file func(name, text string) string) []string {
		return []string{"ssl-cert-file = " + file("ca.pem", g.ca.block("CERTIFICATE"))}
	})
	add("NIX_SSL_CERT_FILE before SSL_CERT_FILE", func(g *gates, file func(name, text string) string) []string {
		return []string{"SSL_CERT_FILE=" + file("other.pem", newAuthority().block("CERTIFICATE")), trusting(g, file)[0]}
	}, nil)
	pair := func(a, b string) func(g *gates, file func(name, text string) string) []string { // the second one is wrong
		return func(g *gates, file func(name, text string) string) []string {
			return []string{a + file("ca.pem", g.ca.block("CERTIFICATE")), b + file("other.pem", newAuthority().block("CERTIFICATE"))}
		}
	}
	add("NIX_SSL_CERT_FILE before ssl-cert-file", func(g *gates, file func(name, text string) string) []string {
		return pair("NIX_SSL_CERT_FILE=", "")(g, file)[:1]
	}, func(g *gates, file func(name, text string) string) []string {
		return pair("", "ssl-cert-file = ")(g, file)[1:]
	})
	add("ssl-cert-file before SSL_CERT_FILE", func(g *gates, file func(name, text string) string) []string {
		return pair("", "SSL_CERT_FILE=")(g, file)[1:]
	}, func(g *gates, file func(name, text string) string) []string {
		return pair("ssl-cert-file = ", "")(g, file)[:1]
	})
	add("an empty NIX_SSL_CERT_FILE, SSL_CERT_FILE", func(g *gates, file func(name, text string) string) []string {
		return append(pair("SSL_CERT_FILE=", "")(g, file)[:1], "NIX_SSL_CERT_FILE=")
	}, nil)
	add("NIX_SSL_CERT_FILE without a file, SSL_CERT_FILE", func(g *gates, file func(name, text string) string) []string {
		return append(pair("SSL_CERT_FILE=", "")(g, file)[:1], "NIX_SSL_CERT_FILE=/nonexistent")
	}, nil)
	add("a directory", func(g *gates, file func(name, text string) string) []string {
		return []string{"NIX_SSL_CERT_FILE=" + filepath.Dir(file("ca.pem", g.ca.block("CERTIFICATE")))}
	}, nil)
	add("no file of that name", func(*gates, func(name, text string) string) []string {
		return []string{"NIX_SSL_CERT_FILE=/nonexistent"}
	}, nil)
	for _, form := range []struct {
		name string
		text func(a *authority) string
	}{
		{"with text before and behind", func(a *authority) string { return "Corp CA\n=======\n" + a.block("CERTIFICATE") + "\nend\n" }},
		{"with CRLF", func(a *authority) string { return strings.ReplaceAll(a.block("CERTIFICATE"), "\n", "\r\n") }},
		{"behind others", func(a *authority) string {
			return newAuthority().block("CERTIFICATE") + newAuthority().block("CERTIFICATE") + a.block("CERTIFICATE")
		}},
		{"behind a damaged one", func(a *authority) string {
			return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("noise")})) + a.block("CERTIFICATE")
		}},
		{"as TRUSTED CERTIFICATE", func(a *authority) string { return a.block("TRUSTED CERTIFICATE") }},
		{"as X509 CERTIFICATE", func(a *authority) string { return a.block("X509 CERTIFICATE") }},
		{"with a byte order mark", func(a *authority) string { return "\ufeff" + a.block("CERTIFICATE") }},
		{"before a damaged one", func(a *authority) string {
			return a.block("CERTIFICATE") + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("noise")}))
		}},
		{"before half of one", func(a *authority) string { return a.block("CERTIFICATE") + a.block("CERTIFICATE")[:200] }},
		{"with a key and a list of revoked ones", func(a *authority) string {
			return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("noise")})) + a.block("CERTIFICATE") +
				string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte("noise")}))
		}},
		{"in DER", func(a *authority) string { return string(a.cert.Raw) }},
		{"not, as it is empty", func(*authority) string { return "" }},
		{"twice", func(a *authority) string { return a.block("CERTIFICATE") + a.block("CERTIFICATE") }},
		{"behind one that has expired", func(a *authority) string { return expiredAuthority().block("CERTIFICATE") + a.block("CERTIFICATE") }},
		{"behind one of the same name and another key", func(a *authority) string { return newAuthority().block("CERTIFICATE") + a.block("CERTIFICATE") }},
		{"with comments, spaces behind each line", func(a *authority) string {
			return "# Corp CA\n# -----\n" + strings.ReplaceAll(a.block("CERTIFICATE"), "\n", "  \n")
		}},
		{"in one line", func(a *authority) string {
			return "-----BEGIN CERTIFICATE-----\n" + base64.StdEncoding.EncodeToString(a.cert.Raw) + "\n-----END CERTIFICATE-----\n"
		}},
		{"with spaces before each line", func(a *authority) string { return "  " + strings.ReplaceAll(a.block("CERTIFICATE"), "\n", "\n  ") }},
		{"in UTF-16", func(a *authority) string {
			var b strings.Builder
			for _, c := range a.block("CERTIFICATE") {
				b.WriteString(string(c) + "\x00")
			}
			return b.String()
		}},
		{"with CR alone", func(a *authority) string { return strings.ReplaceAll(a.block("CERTIFICATE"), "\n", "\r") }},
		{"without a line end", func(a *authority) string { return strings.TrimSuffix(a.block("CERTIFICATE"), "\n") }},
	} {
		add("the file has the authority "+form.name, func(g *gates, file func(name, text string) string) []string {
			return []string{"NIX_SSL_CERT_FILE=" + file("ca.pem", form.text(g.ca))}
		}, nil)
	}
	return all
}

// credentialWays have a cache that wants a name and a password.
func credentialWays() (all []*way) {
	add := func(name, netrc string) {
		all = append(all, &way{
			name: name, quick: len(all)%8 == 0,
			gate: func(g *gates) string { return "http://" + cacheName + ":" + g.guarded("me", "a secret") },
			conf: func(_ *gates, file func(name, text string) string) []string {
				return []string{"netrc-file = " + file("netrc", netrc)}
			},
		})
	}
	const one = "machine " + cacheName + ` login me password "a secret"`
	add("netrc: one line", one)
	add("netrc: a line for each word", strings.Join([]string{"machine", cacheName, "login", "me", "password", `"a secret"`, ""}, "\n"))
	add("netrc: tabs, CRLF", "machine\t"+cacheName+"\r\n\tlogin me\r\n\tpassword \"a secret\"\r\n")
	add("netrc: several machines", "machine other.test login no password no\n"+one+"\nmachine third.test password no\n")
	add("netrc: two entries for the machine, the first is right", one+"\nmachine "+cacheName+" login no password no\n")
	add("netrc: two entries for the machine, the second is right", "machine "+cacheName+" login no password no\n"+one+"\n")
	add("netrc: default", "machine other.test login no password no\ndefault login me password \"a secret\"\n")
	add("netrc: default before the machine", "default login no password no\n"+one+"\n")
	add("netrc: capitals in the host", strings.Replace(one, cacheName, strings.ToUpper(cacheName), 1))
	add("netrc: capitals in the keywords", strings.Replace(one, "machine", "MACHINE", 1))
	add("netrc: the host with a port", strings.Replace(one, cacheName, cacheName+":80", 1))
	add("netrc: password before login", "machine "+cacheName+` password "a secret" login me`)
	add("netrc: account", "machine "+cacheName+` account x login me password "a secret"`)
	add("netrc: comments", "# a comment\n"+one+" # machine\n")
	add("netrc: a comment without a space", "#machine "+cacheName+" login no\n"+one)
	add("netrc: macdef before", "macdef init\ncd /pub\nmachine no\n\n"+one)
	add("netrc: macdef behind", one+"\nmacdef init\ncd /pub\n\n")
	add("netrc: an unknown keyword behind", one+"\nnonsense\n")
	add("netrc: an unknown keyword before", "nonsense\n"+one+"\n")
	add("netrc: an unknown keyword inside", strings.Replace(one, "login", "protocol https login", 1))
	add("netrc: a machine without anything", "machine "+cacheName+"\n")
	add("netrc: a login without a password", "machine "+cacheName+" login me\n")
	add("netrc: a quotation without an end, behind", one+"\nmachine other.test password \"no\n")
	add("netrc: a byte order mark", "\ufeff"+one)
	add("netrc: empty", "")
	all = append(all, &way{
		name: "user and password in the URL",
		gate: func(g *gates) string { return "http://me:a%20secret@" + cacheName + ":" + g.guarded("me", "a secret") },
	}, &way{
		name: "user and password in the URL, others in netrc",
		gate: func(g *gates) string { return "http://me:a%20secret@" + cacheName + ":" + g.guarded("me", "a secret") },
		conf: func(_ *gates, file func(name, text string) string) []string {
			return []string{"netrc-file = " + file("netrc", "machine "+cacheName+" login no password no\n")}
		},
	}, &way{
		name: "no netrc file of that name",
		conf: func(*gates, func(name, text string) string) []string { return []string{"netrc-file = /nonexistent"} },
	})
	return all
}

// directoryWays have a cache in a directory.
func directoryWays() (all []*way) {
	add := func(name, url string, change func(dir string) error) {
		all = append(all, &way{name: "file: " + name, quick: len(all)%8 == 0, layout: func(dir string) (string, error) {
			if change == nil {
				return url, nil
			}
			return url, change(dir)
		}})
	}
	const plain = "file://DIR"
	for _, url := range []string{
		plain, plain + "/", plain + "//", "file:DIR", "file://localhost" + "DIR", "file:///..DIR", "FILE://DIR",
		plain + "?priority=10", plain + "?want-mass-query=true", plain + "?compression=zstd&parallel-compression=true", plain + "/?priority=10",
		plain + "?", plain + "?nonsense=1", plain + "?trusted=1", plain + "/../bin", plain + "/./", plain + "#fragment",
	} {
		add(url, url, nil)
	}
	// each changes every narinfo and the file that it names.
	each := func(name string, change func(dir, url string) (newURL string, err error)) {
		add(name, plain, func(dir string) error { return eachNarInfo(dir, change) })
	}
	move := func(to func(base string) (url, lies string)) func(dir, url string) (string, error) {
		return func(dir, url string) (string, error) {
			url2, lies := to(filepath.Base(url))
			at := filepath.Join(dir, lies)
			return url2, errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.Rename(filepath.Join(dir, url), at))
		}
	}
	same := func(format string) func(dir, url string) (string, error) {
		return move(func(base string) (string, string) { at := strings.ReplaceAll(format, "X", base); return at, at })
	}
	each("NARs beside the narinfos", same("X"))
	each("NARs in nested directories", same("nar/a/b/X"))
	each("NAR URL: ./nar/X", move(func(base string) (string, string) { return "./nar/" + base, "nar/" + base }))
	each("NAR URL: /nar/X", move(func(base string) (string, string) { return "/nar/" + base, "nar/" + base }))
	each("NAR URL: ../bin/nar/X", move(func(base string) (string, string) { return "../bin/nar/" + base, "nar/" + base }))
	each("NAR URL: ../X, outside", move(func(base string) (string, string) { return "../" + base, "../" + base }))
	each("NAR URL: nar//X", move(func(base string) (string, string) { return "nar//" + base, "nar/" + base }))
	each("NAR URL with a query", same("nar/X?hash=y"))
	each("NAR URL with a percent sign", same("nar/%41X"))
	each("NAR URL with a broken percent sign", same("nar/%zzX"))
	each("NAR URL with a space, a plus, a sharp", same("nar/a b+c#X"))
	each("NAR URL with a colon", same("sha256:X"))
	each("NAR URL without a suffix", move(func(base string) (string, string) { at := "nar/" + base[:32]; return at, at }))
	each("NAR URL with the suffix of another compression", move(func(base string) (string, string) { at := "nar/" + base + ".zst"; return at, at }))
	each("NARs are links", func(dir, url string) (string, error) {
		at := filepath.Join(dir, url)
		return url, errors.Join(os.Rename(at, at+".real"), os.Symlink(filepath.Base(at)+".real", at))
	})
	each("NARs are in a directory elsewhere", func(dir, url string) (string, error) {
		nar := filepath.Join(dir, "nar")
		if _, err := os.Readlink(nar); err == nil {
			return url, nil
		}
		return url, errors.Join(os.Rename(nar, filepath.Join(dir, "../nar")), os.Symlink("../nar", nar))
	})
	add("the directory is a link", plain, func(dir string) error {
		return errors.Join(os.Rename(dir, dir+"-real"), os.Symlink("bin-real", dir))
	})
	for _, name := range []string{"with space", "per%41cent", "per%zz", "a+b", "\u00e4", "a#b", "a?b", "a:b"} {
		add("the directory is named "+name, plain+"/../"+name, func(dir string) error { return os.Rename(dir, filepath.Join(filepath.Dir(dir), name)) })
	}
	add("the directory has a space, %20 in the URL", plain+"/../with%20space", func(dir string) error { return os.Rename(dir, filepath.Join(filepath.Dir(dir), "with space")) })
	cacheInfo := func(text string) func(dir string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, "nix-cache-info"), []byte(text), 0o644) }
	}
	add("no nix-cache-info", plain, func(dir string) error { return os.Remove(filepath.Join(dir, "nix-cache-info")) })
	add("nix-cache-info is empty", plain, cacheInfo(""))
	add("nix-cache-info has unknown lines, no line end", plain, cacheInfo("Foo: bar\nStoreDir: /nix/store\nbaz\nPriority: 7"))
	add("nix-cache-info with CRLF", plain, cacheInfo("StoreDir: /nix/store\r\nPriority: 7\r\n"))
	add("nix-cache-info of another store", plain, cacheInfo("StoreDir: /gnu/store\n"))
	add("?trusted=1, narinfos without a signature", plain+"?trusted=1", func(dir string) error {
		infos, err := filepath.Glob(filepath.Join(dir, "*.narinfo"))
		for _, name := range infos {
			text, e := os.ReadFile(name)
			before, _, _ := strings.Cut(string(text), "Sig: ")
			err = errors.Join(err, e, os.WriteFile(name, []byte(before), 0o644))
		}
		return err
	})
	add("no such directory", plain, func(dir string) error { return os.Rename(dir, dir+"-away") })
	return all
}

// eachNarInfo changes where each narinfo of a directory says that its NAR is.
func eachNarInfo(dir string, change func(dir, url string) (newURL string, err error)) error {
	infos, err := filepath.Glob(filepath.Join(dir, "*.narinfo"))
	for _, name := range infos {
		text, e := os.ReadFile(name)
		_, rest, _ := strings.Cut(string(text), "URL: ")
		url, _, _ := strings.Cut(rest, "\n")
		to, e2 := change(dir, url)
		err = errors.Join(err, e, e2, os.WriteFile(name, []byte(strings.Replace(string(text), "URL: "+url+"\n", "URL: "+to+"\n", 1)), 0o644))
	}
	return err
}
