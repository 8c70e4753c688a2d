package main

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"
)

// seen is what went through a recorder.
type seen struct {
	Narinfo map[int]int   // requests by status
	NAR     map[int]int   // the same
	Worst   time.Duration // until a narinfo was answered in whole
}

// recorder stands between Nix and nixp2p and changes nothing.
type recorder struct {
	*httptest.Server
	mu   sync.Mutex
	seen seen
}

func newRecorder(to string) (*recorder, error) {
	target, err := url.Parse(to)
	if err != nil {
		return nil, err
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),
		Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
	}
	rec := &recorder{seen: seen{Narinfo: map[int]int{}, NAR: map[int]int{}}}
	rec.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		sw := &statusWriter{ResponseWriter: w}
		// A cut response leaves by panic.
		defer func() { rec.note(r.URL.Path, sw.status, time.Since(start)) }()
		proxy.ServeHTTP(sw, r)
	}))
	rec.Config.ErrorLog = log.New(io.Discard, "", 0)
	rec.Start()
	return rec, nil
}

func (rec *recorder) note(path string, status int, took time.Duration) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	switch {
	case strings.HasSuffix(path, ".narinfo"):
		rec.seen.Narinfo[status]++
		rec.seen.Worst = max(rec.seen.Worst, took)
	case strings.HasPrefix(path, "/nar/"):
		rec.seen.NAR[status]++
	}
}

// end closes the recorder and returns what it saw.
func (rec *recorder) end() seen {
	rec.CloseClientConnections()
	rec.Close()
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.seen
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
