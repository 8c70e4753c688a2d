package main

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

const publicName = "cache.example.org"

// nginx starts a real one with the http section of its configuration, in which ADDR is where it listens, and returns
// its URL.
func nginx(t *testing.T, section string) string {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		t.Skip("nginx is not installed: make deps")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, dir := l.Addr().String(), t.TempDir()
	_ = l.Close()
	user := ""
	if os.Getuid() == 0 {
		user = "user root;\n"
	}
	text := user + "daemon off; worker_processes 1; pid " + dir + "/pid; error_log " + dir + "/error.log;\nevents {}\nhttp {\n" +
		"access_log off; default_type application/octet-stream;\n"
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		text += fmt.Sprintf("%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	at := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(at, []byte(text+strings.ReplaceAll(section, "ADDR", addr)+"\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-p", dir, "-c", at, "-e", dir+"/error.log")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() })
	for limit := time.Now().Add(time.Minute); ; <-time.After(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close()
			return "http://" + addr
		}
		if time.Now().After(limit) {
			log, _ := os.ReadFile(dir + "/error.log")
			t.Fatalf("nginx does not listen: %s", log)
		}
	}
}

// webAnswer is what matters of an answer.
type webAnswer struct {
	status int
	header http.Header
	body   string
}

// askAs sends a request as a client of the public mirror does. Of key "", no header is sent.
func askAs(t *testing.T, method, url, key, value string) webAnswer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = publicName
	r.Header.Set("Accept-Encoding", "identity")
	if key != "" {
		r.Header.Set(key, value)
	}
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return webAnswer{res.StatusCode, res.Header, string(body)}
}

// publicMirror is a node with a cache of one path, which nginx has as well, and one private path.
func publicMirror(t *testing.T) (d *process, files, narinfo, nar, private string) {
	dir := t.TempDir()
	key, home := nixtest.NewKey("share-1"), nixtest.NewKey("home-1")
	p, secret := nixtest.NewPath("hello", 100_000), nixtest.NewPath("secret", 1000)
	cfg := nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: []nixtest.Key{key}, Compression: nix.Zstd}
	nixtest.WriteCache(t, dir, cfg)
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{secret}, Keys: []nixtest.Key{home}})
	d = startDaemon(t, "--store-root", t.TempDir(), "--p2p=false", "--upstream", "file://"+dir, "--upstream", up.URL(),
		"--trusted-public-key", key.Public(), "--trusted-public-key", home.Public(), "--share-key", key.Name, "--server-name", publicName)
	narinfo, private = "/"+p.Hash().String()+".narinfo", "/"+secret.Hash().String()+".narinfo"
	n, err := nix.ParseNarInfo([]byte(askAs(t, http.MethodGet, d.url+narinfo, "", "").body))
	if err != nil {
		t.Fatal(err)
	}
	nar = "/" + n.URL
	// The same bytes under the same name.
	from, _ := filepath.Glob(filepath.Join(dir, "nar", "*"))
	if len(from) != 1 {
		t.Fatal(from)
	}
	if err := os.Rename(from[0], filepath.Join(dir, n.URL)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, narinfo))
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), "URL: nar/"+filepath.Base(from[0]), "URL: "+n.URL, 1))
	if err := os.WriteFile(filepath.Join(dir, narinfo), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return d, dir, narinfo, nar, private
}

// TestBesideNginx: to a proxy or a CDN a node answers as nginx with the same files does. What differs is in the
// table, with the reason.
func TestBesideNginx(t *testing.T) {
	d, dir, narinfo, nar, _ := publicMirror(t)
	static := nginx(t, "server { listen ADDR; root "+dir+"; }")
	whole := askAs(t, http.MethodGet, static+nar, "", "").body
	const past, future = "Thu, 01 Jan 1970 00:00:01 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"
	for _, c := range []struct {
		method, path, key, value string // TAG stands for the entity tag of the server that is asked
		node                     int    // the status of the node, if it is another one
	}{
		{"GET", narinfo, "", "", 0},
		{"HEAD", narinfo, "", "", 0},
		{"GET", nar, "", "", 0},
		{"HEAD", nar, "", "", 0},
		{"GET", "/nix-cache-info", "", "", 0},
		{"GET", "/" + nar, "", "", 0},
		{"GET", "/." + nar, "", "", 0},
		{"GET", "/%2e" + nar, "", "", 0},
		{"GET", "/x/.." + nar, "", "", 0},
		{"GET", strings.Replace(nar, "/nar/", "/nar//", 1), "", "", 0},
		{"GET", strings.Replace(nar, "/nar/", "/n%61r/", 1), "", "", 0},
		{"GET", strings.Replace(nar, "/nar/", "/nar%2F", 1), "", "", 0},
		{"GET", strings.Replace(narinfo, ".narinfo", "%2Enarinfo", 1), "", "", 0},
		{"GET", narinfo + "?x=y", "", "", 0},
		{"GET", "/" + strings.Repeat("0", 32) + ".narinfo", "", "", 0},
		{"HEAD", "/" + strings.Repeat("0", 32) + ".narinfo", "", "", 0},
		{"GET", "/log/none.drv", "", "", 0},
		{"PUT", narinfo, "", "", 0},
		{"POST", narinfo, "", "", 0},
		{"DELETE", nar, "", "", 0},

		{"GET", narinfo, "If-None-Match", "TAG", 0},
		{"HEAD", narinfo, "If-None-Match", "TAG", 0},
		{"GET", nar, "If-None-Match", "TAG", 0},
		{"GET", nar, "If-None-Match", "W/TAG", 0},
		{"GET", nar, "If-None-Match", `"x", TAG`, 0},
		{"GET", nar, "If-None-Match", "*", 0},
		{"GET", nar, "If-None-Match", `"x"`, 0},
		{"GET", nar, "If-Match", "TAG", 0},
		{"GET", nar, "If-Match", "*", 0},
		{"GET", nar, "If-Match", `"x"`, 0},
		{"GET", "/" + strings.Repeat("0", 32) + ".narinfo", "If-None-Match", "*", 0},
		// A node does not know when its source changed something; it has tags, which count before dates.
		{"GET", nar, "If-Modified-Since", past, 0},
		{"GET", nar, "If-Modified-Since", future, 0},
		{"GET", nar, "If-Unmodified-Since", past, 200},

		{"GET", nar, "Range", "bytes=0-0", 0},
		{"GET", nar, "Range", "bytes=100-199", 0},
		{"GET", nar, "Range", "bytes=100-", 0},
		{"GET", nar, "Range", "bytes=-100", 0},
		{"GET", nar, "Range", "bytes=99-999999999", 0},
		{"GET", nar, "Range", "bytes=-999999999", 0},
		{"GET", nar, "Range", "bytes=999999999-", 0},
		{"GET", nar, "Range", "bytes=-0", 0},
		{"GET", nar, "Range", "items=0-1", 0},
		// RFC 9110 has what is no range ignored, and lets a server ignore several, as proxies do that have not all bytes.
		{"GET", nar, "Range", "bytes=5-4", 200},
		{"GET", nar, "Range", "bytes=x-y", 200},
		{"GET", nar, "Range", "bytes=0-1,5-6", 200},
		// RFC 9110: a Range counts for GET alone. A narinfo is too short for one.
		{"HEAD", nar, "Range", "bytes=0-0", 200},
		{"GET", narinfo, "Range", "bytes=0-0", 200},
	} {
		n, s := both(t, d.url, static, c.method, c.path, c.key, c.value)
		what := fmt.Sprintf("%s %s, %s: %s", c.method, c.path, c.key, c.value)
		want := s.status
		if c.node != 0 {
			want = c.node
		}
		switch {
		case n.status != want:
			t.Errorf("%s: %d, nginx %d", what, n.status, s.status)
		case c.node == 0 && c.path == nar && n.status < 300 && n.body != s.body:
			t.Errorf("%s: %d bytes, nginx %d", what, len(n.body), len(s.body))
		case c.node == 200 && c.method == "GET" && c.path == nar && n.body != whole:
			t.Errorf("%s: %d bytes", what, len(n.body))
		}
		compareHeaders(t, what, n, s)
	}
}

// both asks a node and a static server.
func both(t *testing.T, node, static, method, path, key, value string) (n, s webAnswer) {
	t.Helper()
	for _, c := range []struct {
		at  string
		got *webAnswer
	}{{node, &n}, {static, &s}} {
		v := value
		if strings.Contains(v, "TAG") {
			v = strings.ReplaceAll(v, "TAG", askAs(t, http.MethodGet, c.at+path, "", "").header.Get("ETag"))
		}
		*c.got = askAs(t, method, c.at+path, key, v)
	}
	return n, s
}

// compareHeaders wants those of n that caches go by as s has them.
func compareHeaders(t *testing.T, what string, n, s webAnswer) {
	t.Helper()
	if n.status != s.status {
		return
	}
	h := n.header
	for _, key := range []string{"Content-Range", "Accept-Ranges"} {
		if key == "Accept-Ranges" && (n.status != 200 || !strings.Contains(what, "/nar/")) {
			continue
		}
		if h.Get(key) != s.header.Get(key) {
			t.Errorf("%s: %s %q, nginx %q", what, key, h.Get(key), s.header.Get(key))
		}
	}
	if (h.Get("ETag") == "") != (s.header.Get("ETag") == "") && n.status < 400 {
		t.Errorf("%s: ETag %q, nginx %q", what, h.Get("ETag"), s.header.Get("ETag"))
	}
	if n.status < 300 && h.Get("Content-Length") == "" {
		t.Errorf("%s: no Content-Length: %v", what, h)
	}
	// More than nginx says by itself: how long a cache may keep it.
	if keep := h.Get("Cache-Control"); n.status < 405 && n.status != 412 && !strings.HasPrefix(keep, "max-age=") {
		t.Errorf("%s: status %d, Cache-Control %q", what, n.status, keep)
	}
}

// deployed returns the configuration of deploy/nginx.conf for a node, as it is but for addresses and directories, and with
// a header that says whether nginx had the answer.
func deployed(t *testing.T, d *process, dir string) string {
	text, err := os.ReadFile("../../deploy/nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	changes := map[string]string{
		"http://127.0.0.1:7654": d.url, "/var/cache/nginx/nix": filepath.Join(dir, "cache"),
		"listen 80;\n\tlisten [::]:80;": "listen ADDR;\n\tadd_header X-Cache $upstream_cache_status always;",
	}
	conf := string(text)
	for was, is := range maps.All(changes) {
		if !strings.Contains(conf, was) {
			t.Fatalf("deploy/nginx.conf has no %q", was)
		}
		conf = strings.ReplaceAll(conf, was, is)
	}
	return conf
}

// TestBehindNginx: deploy/nginx.conf, as it is: what nginx keeps and for how long, ranges, and that clients of a proxy on the
// same machine are not taken for programs of this machine.
func TestBehindNginx(t *testing.T) {
	d, dir, narinfo, nar, private := publicMirror(t)
	proxy := nginx(t, deployed(t, d, t.TempDir()))
	none := "/" + strings.Repeat("0", 32) + ".narinfo"
	for _, c := range []struct {
		path, key, value string
		status           int
		cache            string // HIT if nginx has it
	}{
		{"/nix-cache-info", "", "", 200, "MISS"},
		{"/nix-cache-info", "", "", 200, "HIT"},
		{narinfo, "User-Agent", "Mozilla/5.0", 404, "MISS"}, // is not kept for others
		{narinfo, "", "", 200, "MISS"},
		{narinfo, "", "", 200, "HIT"},
		{narinfo, "If-None-Match", "*", 304, "HIT"},
		{none, "", "", 404, "MISS"},
		{none, "", "", 404, "HIT"},
		{private, "", "", 404, "MISS"},
		{private, "", "", 404, "HIT"},
		{nar, "", "", 200, ""},
		{nar, "Range", "bytes=100-199", 206, ""},
		{nar, "Range", "bytes=999999999-", 416, ""},
	} {
		got := askAs(t, http.MethodGet, proxy+c.path, c.key, c.value)
		if got.status != c.status || got.header.Get("X-Cache") != c.cache {
			t.Errorf("%s, %s: %s: %d, %q of nginx's cache, want %d, %q", c.path, c.key, c.value, got.status, got.header.Get("X-Cache"), c.status, c.cache)
		}
	}
	file, err := os.ReadFile(filepath.Join(dir, nar))
	if err != nil {
		t.Fatal(err)
	}
	if got := askAs(t, http.MethodGet, proxy+nar, "Range", "bytes=100-199"); got.body != string(file[100:200]) {
		t.Errorf("%d bytes", len(got.body))
	}
	// This machine's own Nix has it.
	if status, _ := d.get(d.url + private); status != http.StatusOK {
		t.Errorf("the private path for a program of this machine: %d", status)
	}
	d.stop()
	if got := askAs(t, http.MethodGet, proxy+narinfo, "", ""); got.status != http.StatusOK {
		t.Errorf("while the node is restarted: %d", got.status)
	}
	d.start()
}
