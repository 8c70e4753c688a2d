package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// server is a process under measurement.
type server struct {
	cmd *exec.Cmd
	url string
	log bytes.Buffer
}

// startServer runs a command and waits until url answers.
func startServer(cmd *exec.Cmd, url, probe string) (*server, error) {
	s := &server{cmd: cmd, url: url}
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		res, err := http.Get(url + probe)
		if err == nil {
			_ = res.Body.Close()
			return s, nil
		}
	}
	s.stop()
	return nil, fmt.Errorf("%s does not answer at %s:\n%s", filepath.Base(cmd.Path), url, s.log.String())
}

func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait()
	http.DefaultClient.CloseIdleConnections()
}

// usage is what a process and its children took so far.
type usage struct {
	cpu     float64 // seconds, user and system
	rss     int64   // peak bytes, summed over the processes
	current int64   // resident bytes now
}

func (s *server) usage() (u usage) {
	for _, pid := range family(s.cmd.Process.Pid) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		ticks := func(i int) float64 { v, _ := strconv.ParseFloat(f[i], 64); return v / 100 }
		u.cpu += ticks(11) + ticks(12)
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		u.rss += kilobytes(status, "VmHWM:")
		u.current += kilobytes(status, "VmRSS:")
	}
	return u
}

func kilobytes(status []byte, key string) int64 {
	_, rest, _ := bytes.Cut(status, []byte(key))
	f := bytes.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(string(f[0]), 10, 64)
	return n << 10
}

// family returns pid and its children's pids: nginx works in those.
func family(pid int) []int {
	pids := []int{pid}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, f := range strings.Fields(string(text)) {
		if n, err := strconv.Atoi(f); err == nil {
			pids = append(pids, family(n)...)
		}
	}
	return pids
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.New("no TCP address")
	}
	return addr.Port, nil
}

const nginxHead = `daemon off; worker_processes auto; pid %[1]s/nginx.pid; error_log %[1]s/error.log warn;
events { worker_connections 4096; }
http {
	access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000; open_file_cache max=4000;
	client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	server { listen 127.0.0.1:%[2]d; %[3]s }
	%[4]s
}
`

// nginx serves a directory.
func (b *bench) nginx(root string) (*server, error) {
	return b.startNginx("root "+root+";", "")
}

// proxyCache is nginx as a pull-through cache in front of upstream.
func (b *bench) proxyCache(upstream string) (*server, error) {
	return b.startNginx(`location / {
			proxy_pass `+upstream+`; proxy_http_version 1.1; proxy_set_header Connection "";
			proxy_cache c; proxy_cache_valid 200 1d; proxy_cache_valid 404 1m; proxy_cache_lock on; }`,
		"proxy_cache_path DIR/cache levels=2 keys_zone=c:64m max_size=20g inactive=1d use_temp_path=off;")
}

func (b *bench) startNginx(location, extra string) (*server, error) {
	dir, err := os.MkdirTemp(b.dir, "nginx-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(nginxHead, dir, port, location, strings.ReplaceAll(extra, "DIR", dir))
	if os.Geteuid() == 0 {
		text = "user root;\n" + text // the corpus may lie where nobody else may look
	}
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	return startServer(exec.CommandContext(b.ctx, "nginx", "-c", conf, "-p", dir), fmt.Sprintf("http://127.0.0.1:%d", port), "/nix-cache-info")
}

// nixp2p starts a node with empty directories.
func (b *bench) nixp2p(upstream, storeRoot string) (*server, error) {
	dir, err := os.MkdirTemp(b.dir, "nixp2p-")
	if err != nil {
		return nil, err
	}
	return b.nixp2pIn(dir, upstream, storeRoot)
}

func (b *bench) nixp2pIn(dir, upstream, storeRoot string) (*server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	admin, err := freePort()
	if err != nil {
		return nil, err
	}
	if storeRoot == "" {
		storeRoot = filepath.Join(dir, "empty")
	}
	name, _, _ := strings.Cut(b.corpus.PublicKey, ":")
	cmd := exec.CommandContext(b.ctx, b.binary, "serve", "--config", os.DevNull, "--p2p=false",
		"--listen", fmt.Sprintf("127.0.0.1:%d", port), "--admin-listen", fmt.Sprintf("127.0.0.1:%d", admin),
		"--state-dir", filepath.Join(dir, "state"), "--cache-dir", filepath.Join(dir, "cache"), "--store-root", storeRoot,
		"--upstream", upstream, "--trusted-public-key", b.corpus.PublicKey, "--share-key", name)
	return startServer(cmd, fmt.Sprintf("http://127.0.0.1:%d", port), "/nix-cache-info")
}
