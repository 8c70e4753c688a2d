package doctor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixconf"
	"github.com/nixp2p/nixp2p/internal/source"
)

// facts are what all checks use. They are filled by gather and only read afterwards.
type facts struct {
	Config

	status    *admin.Status // nil: see statusErr
	statusErr error
	peers     []admin.Peer
	// tried is what each source of the node answered just now when it was asked for a path that
	// nobody has; nil if it took too long.
	tried []admin.Answer

	front    *nix.CacheInfo // what the substituter says of itself; nil: see frontErr
	frontErr error

	probes []probe // of the upstreams

	places      nixconf.Places
	nix         *nixconf.Nix // nil: see nixErr
	nixErr      error        // fs.ErrNotExist: there is none
	settings    nixconf.Settings
	settingsErr error // Nix or we cannot read the configuration
	system      nixconf.Settings
}

// gather asks the node and Nix, all at once.
func (p *facts) gather(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, factsTime)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { p.askNode(ctx) })
	wg.Go(func() {
		text, err := p.askFront(ctx, "/nix-cache-info", nix.MaxCacheInfo)
		if p.frontErr = err; err == nil {
			p.front, p.frontErr = parseCacheInfo(text)
		}
	})
	wg.Go(func() { p.askNix(ctx) })
	wg.Go(func() { p.probeUpstreams(ctx) })
	wg.Wait()
}

// askTime bounds a question to the node: it answers these from memory.
const askTime = 3 * time.Second

func (p *facts) askNode(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	c := admin.Client{Addr: p.AdminListen}
	status, err := c.Status(ctx)
	switch {
	case err != nil:
		p.statusErr = err
	case status.Version == "" || status.Upstreams == nil:
		p.statusErr = errors.New("what answers is not nixp2p")
	default:
		p.status = &status
		p.peers, _ = c.Peers(ctx) // the number of peers is in the status, too
		p.try(ctx, c)
	}
}

// try makes the node ask every source, so that what it says of them is of now.
func (p *facts) try(ctx context.Context, c admin.Client) {
	var h nix.StoreHash
	_, _ = rand.Read(h[:]) // never fails
	var w admin.Why
	if !p.status.Ready || c.Get(ctx, "/api/v1/why/"+h.String(), &w) != nil {
		return
	}
	p.tried = w.Answers
	if status, err := c.Status(ctx); err == nil {
		p.status = &status
	}
}

// askNix finds out what Nix goes by: Nix itself says it best.
func (p *facts) askNix(ctx context.Context) {
	p.places = nixconf.Look(p.Getenv)
	p.system, p.settingsErr = p.places.ReadSystem()
	p.nix, p.nixErr = nixconf.Find(ctx, p.Getenv)
	if p.nixErr == nil {
		var err error
		if p.settings, err = p.nix.Settings(ctx); err == nil || p.settingsErr != nil {
			p.settingsErr = err
			return
		}
		// An old Nix that cannot say it, or one that takes too long: the files say the same.
	}
	p.settings, p.settingsErr = p.places.Read()
}

// askFront asks the substituter for a small text.
func (p *facts) askFront(ctx context.Context, path string, most int64) ([]byte, error) {
	client, url := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, p.URL
	if socket, unix := strings.CutPrefix(p.Listen, "unix:"); unix {
		url = "http://nixp2p"
		client.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}}
	}
	text, _, err := fetch(ctx, client, url+path, most)
	return text, err
}

// answerError is an HTTP answer that is not 200.
type answerError struct{ status string }

func (e *answerError) Error() string { return "answers " + e.status }

// fetch gets a small text.
func fetch(ctx context.Context, c *http.Client, url string, most int64) ([]byte, http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, nil, err
	}
	res, err := c.Do(req)
	if err != nil {
		return nil, nil, fmt.Errorf("%w", errors.Unwrap(err)) // without the URL, which may have a password
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, most))
	if res.StatusCode != http.StatusOK {
		return nil, res.Header, &answerError{res.Status}
	}
	return text, res.Header, err
}

func parseCacheInfo(text []byte) (*nix.CacheInfo, error) {
	if source.IsWebPage(text) {
		return nil, source.ErrWebPage
	}
	info, err := nix.ParseCacheInfo(text)
	if err != nil {
		return nil, err
	}
	return &info, nil
}

// multiUser reports whether this user's Nix works through a daemon, which need not do what this
// user's settings say.
func (p *facts) multiUser() bool {
	if p.Getenv("NIX_REMOTE") == "daemon" {
		return true
	}
	_, err := os.Stat("/nix/var/nix/daemon-socket/socket")
	return os.Geteuid() != 0 && err == nil
}

// listed reports whether this user is in a list such as trusted-users: by name, by @GROUP, or
// by *.
func listed(users []string) bool {
	me, err := user.Current()
	if err != nil {
		return slices.Contains(users, "*")
	}
	names := []string{"*", me.Username}
	ids, _ := me.GroupIds()
	for _, id := range ids {
		if g, err := user.LookupGroupId(id); err == nil {
			names = append(names, "@"+g.Name)
		}
	}
	return slices.ContainsFunc(users, func(u string) bool { return slices.Contains(names, u) })
}

// noNix reports whether there is no Nix here, and nothing of its configuration to look at.
func (p *facts) noNix() bool {
	if !errors.Is(p.nixErr, fs.ErrNotExist) {
		return false
	}
	_, err := os.Stat(p.places.System)
	return errors.Is(err, fs.ErrNotExist)
}
