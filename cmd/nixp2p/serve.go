package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/httpfront"
	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/source"
)

const (
	// drainTime is how long transfers may go on after SIGTERM.
	drainTime = 30 * time.Second
	// maxAdminConns bounds the connections to the admin listener.
	maxAdminConns = 256
	// maxHeader is far above what Nix sends.
	maxHeader  = 32 << 10
	headerTime = 10 * time.Second
	idleTime   = 2 * time.Minute
	// startWait is how long requests wait for a node that is being started, counted from the
	// start: below the deadline of a narinfo, and a 404 costs the client an hour.
	startWait = 8 * time.Second

	// startTimeout is within which systemd wants to hear that the daemon has started. Requests are
	// answered long before.
	startTimeout = time.Minute
	// memoryLimit is where Go collects garbage more often: what one hostile machine can make a
	// node keep, and the code, fit into 200 MB then.
	memoryLimit = 160 << 20
)

// server is the daemon: its listeners, and what answers on them at the moment.
type server struct {
	ui     *ui
	log    *slog.Logger
	level  *slog.LevelVar
	front  atomic.Pointer[http.Handler]
	admin  adminNode
	cfg    *config.Config
	listen *listeners
	hangup chan os.Signal
	// conditions are how the parts work: those that work with less say so here.
	conditions source.Conditions

	saying announcements

	starts    *starts                      // nil unless systemd holds the socket
	started   chan struct{}                // closed when there is a node, or will be none
	late      <-chan struct{}              // closed after startWait
	transfers atomic.Pointer[atomic.Int64] // NARs on their way, of those that drain waits for
}

// announcements are what people were told, or are to be told, about the listeners.
type announcements struct {
	sync.Mutex
	said     bool   // where the substituter listens
	adminURL string // "" while it does not listen
}

// serve runs the daemon until ctx ends. A start that fails after systemd handed over the
// socket stays up and answers 404: the socket would take connections that nobody answers.
func serve(ctx context.Context, u *ui, load func() (*config.Config, error)) error {
	if debug.SetMemoryLimit(-1) == math.MaxInt64 { // no GOMEMLIMIT
		debug.SetMemoryLimit(memoryLimit)
	}
	// From the first moment: SIGHUP ends a process that does not expect it.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	// The unit's time for a start is for programs that do not come this far.
	notify(fmt.Sprint("EXTEND_TIMEOUT_USEC=", startTimeout.Microseconds()))
	cfg, cfgErr := load()
	ls, err := listenFront(ctx, cfg.Listen)
	if err != nil {
		return err
	}
	defer ls.close()
	if cfgErr != nil && !ls.inherited {
		return u.problems(cfgErr)
	}
	s := &server{ui: u, listen: ls, level: new(slog.LevelVar), hangup: hangup, started: make(chan struct{})}
	s.transfers.Store(new(atomic.Int64))
	s.level.Set(cfg.LogLevel)
	out := newLogWriter(u.err, &s.conditions)
	defer out.close()
	s.log = newLog(out, u.err, cfg.LogFormat, s.level)
	for _, w := range cfg.Warnings {
		s.log.Warn(w)
	}
	if ls.inherited && cfgErr == nil {
		s.starts = countStart(cfg.StateDir, time.Now())
	}
	if err := s.run(ctx, cfg, errors.Join(cfgErr, s.starts.err()), load); !errors.Is(err, errTryAgain) {
		return err
	}
	return nil
}

func (s *server) run(ctx context.Context, cfg *config.Config, cfgErr error, load func() (*config.Config, error)) error {
	m := metrics.New()
	id := newID()
	s.cfg, s.admin.conditions = cfg, &s.conditions
	if err := s.answerNothing(cfg.Priority, id, m); err != nil {
		return err
	}
	page, err := admin.New(admin.Config{
		Node: &s.admin, Metrics: m, Addr: cfg.AdminListen, Names: cfg.ServerNames, Version: version(), Log: s.log,
	})
	if err != nil {
		return err
	}
	return s.work(ctx, page, load, func() (*node, error) {
		if cfgErr != nil {
			return nil, cfgErr
		}
		return s.newNode(m, id)
	})
}

// newNode is the function of this name with a panic as an error: under systemd's socket a crash
// at every start would leave connections unanswered for good.
func (s *server) newNode(m *metrics.Metrics, id string) (n *node, err error) {
	defer func() {
		if p := recover(); p != nil {
			n, err = nil, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return newNode(s.cfg, m, id, &s.conditions, s.log)
}

// runNode starts a node and runs it until ctx ends. One that cannot be started ends the
// process only when no socket from systemd would then take connections that nobody answers.
func (s *server) runNode(ctx context.Context, start func() (*node, error)) error {
	n, err := start()
	switch {
	case err == nil:
		s.front.Store(&n.front)
		s.admin.node.Store(n)
	case s.listen.inherited:
		s.log.Error("cannot work, answering 404 to everything", "err", err)
		s.admin.broken.Store(&err)
	default:
		return err
	}
	close(s.started)
	s.sayListening()
	notify(daemon.SdNotifyReady + "\nSTATUS=" + s.statusText())
	if err != nil {
		return nil
	}
	return errors.Join(n.run(ctx, s.log), n.close())
}

// sayListening tells people, and programs that wait for it, where to ask.
func (s *server) sayListening() {
	for _, l := range s.listen.front {
		s.log.Info("listening", "url", urlOf(l), "inherited", s.listen.inherited)
	}
	s.saying.Lock()
	defer s.saying.Unlock()
	if s.saying.said = true; s.saying.adminURL != "" {
		s.log.Info("listening for admin", "url", s.saying.adminURL)
	}
}

// sayAdmin tells where the admin listener is, after the substituter.
func (s *server) sayAdmin(url string) {
	s.saying.Lock()
	defer s.saying.Unlock()
	if s.saying.adminURL = url; s.saying.said {
		s.log.Info("listening for admin", "url", url)
	}
}

// serveFront answers on the substituter's sockets.
func (s *server) serveFront(w http.ResponseWriter, r *http.Request) {
	select {
	case <-s.started:
	default:
		s.awaitNode(r)
	}
	if strings.HasPrefix(r.URL.Path, "/nar/") {
		transfers := s.transfers.Load()
		transfers.Add(1)
		defer transfers.Add(-1)
	}
	(*s.front.Load()).ServeHTTP(w, r)
}

// awaitNode lets a request wait for the node, if the node has something to say to it.
func (s *server) awaitNode(r *http.Request) {
	if r.URL.Path == "/nix-cache-info" {
		return
	}
	select {
	case <-s.started:
	case <-s.late:
	case <-r.Context().Done():
	}
}

// answerNothing makes the front answer nix-cache-info and 404 until there is more.
func (s *server) answerNothing(priority int, id string, m *metrics.Metrics) error {
	h, err := httpfront.New(httpfront.Config{Metrics: m, Names: hostNames(s.cfg.Listen), Public: s.cfg.ServerNames, Priority: priority, ID: id})
	if err != nil {
		return err
	}
	var handler http.Handler = h
	s.front.Store(&handler)
	return nil
}

// adminAgain is how often an address of the admin listener that is taken is tried again.
const adminAgain = 5 * time.Second

// serveAdmin answers on the admin listener until ctx ends: as soon as its address can be had, since
// nothing that Nix asks for depends on it.
func (s *server) serveAdmin(ctx context.Context, x *http.Server, conns *httpfront.Conns) error {
	const key = "admin"
	for {
		l, err := listen(ctx, s.cfg.AdminListen)
		if err == nil {
			s.conditions.Over(s.log, key)
			s.sayAdmin(urlOf(l))
			if err = x.Serve(conns.Listener(l)); errors.Is(err, http.ErrServerClosed) {
				return nil
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		s.conditions.Report(s.log, key, source.Condition{
			Part: source.PartAdmin, Text: fmt.Sprintf("no page, API and metrics on %s: %v", s.cfg.AdminListen, err),
			Hint: "`ss -ltnp` shows which program has the port; stop it, or give nixp2p another --admin-listen",
		})
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(adminAgain):
		}
	}
}

// work serves until ctx ends or a part fails, then drains.
func (s *server) work(ctx context.Context, page http.Handler, load func() (*config.Config, error), start func() (*node, error)) error {
	frontConns, adminConns := httpfront.NewConns(httpfront.MaxConns), httpfront.NewConns(maxAdminConns)
	frontServer := s.httpServer(http.HandlerFunc(s.serveFront), frontConns)
	adminServer := s.httpServer(page, adminConns)
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), startWait)
	defer cancel()
	s.late = late.Done()
	g, gctx := errgroup.WithContext(ctx)
	for _, l := range s.listen.front {
		g.Go(func() error { return served(frontServer.Serve(frontConns.Listener(l))) })
	}
	g.Go(func() error { return s.serveAdmin(gctx, adminServer, adminConns) })
	g.Go(func() error { s.watchDescriptors(gctx); return nil })
	g.Go(func() error { return s.starts.watch(ctx, gctx, s.started) })
	// The node outlives the servers by the time that transfers need to end.
	nctx, stopNode := context.WithCancel(context.WithoutCancel(ctx))
	defer stopNode()
	g.Go(func() error { return s.runNode(nctx, start) })
	g.Go(func() error { return feedWatchdog(nctx, gctx, s.listen.front[0]) })
	g.Go(func() error { s.tellStatus(gctx); return nil })
	g.Go(func() error { s.dumpOnAbort(gctx); return nil })
	g.Go(func() error { s.reloadOnHangup(gctx, load); return nil })
	g.Go(func() error {
		<-gctx.Done()
		s.drain(frontServer, adminServer)
		stopNode()
		return nil
	})
	return g.Wait()
}

func (s *server) httpServer(h http.Handler, conns *httpfront.Conns) *http.Server {
	return &http.Server{
		Handler: h, ConnState: conns.State, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// drain lets transfers end, for drainTime at most; a second signal ends at once.
func (s *server) drain(servers ...*http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	notify(daemon.SdNotifyStopping + "\nSTATUS=shutting down, transfers may end")
	s.log.Info("shutting down", "drain", drainTime)
	// Peers are told to go on elsewhere at once; what they are getting they get to its end.
	var uploads sync.WaitGroup
	defer uploads.Wait()
	if n := s.admin.node.Load(); n != nil && n.peers != nil {
		uploads.Go(func() { n.peers.Drain(ctx) })
	}
	if s.listen.inherited {
		s.endTransfers(ctx)
	}
	for _, x := range servers {
		if err := x.Shutdown(ctx); err != nil {
			_ = x.Close()
		}
	}
}

// endTransfers waits for the NARs that are on their way now. All else is answered meanwhile: in
// systemd's socket it would wait for the slowest of them.
func (s *server) endTransfers(ctx context.Context) {
	old := s.transfers.Swap(new(atomic.Int64))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for old.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// reloadOnHangup takes over what can be changed safely while running, on SIGHUP.
func (s *server) reloadOnHangup(ctx context.Context, load func() (*config.Config, error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.hangup:
			s.reload(load)
		}
	}
}

// reload changes the log level; all else is bound into connections, files and proofs, and takes a
// restart, which systemd's socket makes unfelt.
func (s *server) reload(load func() (*config.Config, error)) {
	cfg, err := load()
	if err != nil {
		s.log.Error("configuration not reloaded", "err", err)
		return
	}
	s.level.Set(cfg.LogLevel)
	s.log.Info("configuration reloaded", "log_level", cfg.LogLevel.String())
	s.noteChanged(without(cfg.Diff(s.cfg), "log-level"))
}

// noteChanged says which settings of the file are not those that the daemon works with.
func (s *server) noteChanged(keys []string) {
	n := s.admin.node.Load()
	if n == nil {
		return
	}
	const key = "reload"
	if len(keys) == 0 {
		n.conditions.Clear(key)
		return
	}
	text := "the configuration has changed, and these settings take a restart: " + strings.Join(keys, ", ")
	n.conditions.Set(key, source.Condition{Part: source.PartProcess, Text: text, Hint: "`systemctl restart nixp2p.service`", Note: true})
	s.log.Warn(text)
}

// without returns keys less one.
func without(keys []string, key string) []string {
	return slices.DeleteFunc(keys, func(k string) bool { return k == key })
}

// newID names this process in Via headers.
func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
