package doctor

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	_ "modernc.org/sqlite" // Nix remembers what caches said in SQLite

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Nix keeps what caches answered in binary-cache-v*.sqlite of the user who asks, which is root
// where there is a Nix daemon: absences for an hour, a cache's priority for 7 days, and for
// ever up to Nix 2.9.
const rememberedFiles = "binary-cache-v*.sqlite"

// maxAsked bounds how many remembered absences are asked for anew.
const maxAsked = 32

// checkRemembered finds answers of the past that keep Nix from asking again.
func checkRemembered(ctx context.Context, p *facts) []Finding {
	as, used := p.used()
	if !used {
		as = p.URL
	}
	var all []Finding
	files := 0
	for _, dir := range p.memories() {
		if _, err := os.ReadDir(dir); errors.Is(err, fs.ErrPermission) {
			all = append(all, unknown("%s may not be read: run this as root to look there, too", dir)...)
			continue
		}
		names, _ := filepath.Glob(filepath.Join(dir, rememberedFiles))
		for _, name := range names {
			files++
			found, err := p.checkMemory(ctx, name, as)
			if err != nil {
				found = unknown("%s: %v", name, err)
			}
			all = append(all, found...)
		}
	}
	if len(all) == 0 {
		return ok("nothing in the way (%s looked at)", count(files, "file"))
	}
	return all
}

// memories are the directories where this user's Nix and root's remember.
func (p *facts) memories() (dirs []string) {
	if d := p.Getenv("NIX_CACHE_HOME"); d != "" {
		dirs = append(dirs, d)
	}
	if d := p.Getenv("XDG_CACHE_HOME"); d != "" {
		dirs = append(dirs, filepath.Join(d, "nix"))
	} else if d := p.Getenv("HOME"); d != "" {
		dirs = append(dirs, filepath.Join(d, ".cache/nix"))
	}
	if root, err := user.LookupId("0"); err == nil {
		dirs = append(dirs, filepath.Join(root.HomeDir, ".cache/nix"))
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// memory is what one file says of the node.
type memory struct {
	priority int
	said     time.Time       // when the cache said that
	absent   []nix.StoreHash // freshly, the latest first; at most maxAsked
	absences int
}

func (p *facts) checkMemory(ctx context.Context, name, as string) ([]Finding, error) {
	m, err := readMemory(ctx, name, as, time.Now().Add(-time.Duration(p.settings.NegativeTTL)*time.Second))
	if err != nil || m == nil {
		return nil, err
	}
	var found []Finding
	_, _, given := withPriority(as)
	// Nix believes a nix-cache-info for 7 days, before 2.10 for ever.
	current := p.nix == nil || !p.nix.AtLeast(2, 10) || time.Since(m.said) < 7*24*time.Hour
	if p.front != nil && !given && current && m.priority != p.front.Priority {
		found = append(found, warn("remove "+name+" while no Nix runs: Nix makes it anew",
			"Nix remembers priority %d for %s, which now says %d, and goes by what it remembers (%s)", m.priority, as, p.front.Priority, name)...)
	}
	if m.absences == 0 {
		return found, nil
	}
	here, asked := p.hereNow(ctx, m.absent)
	ttl := time.Duration(p.settings.NegativeTTL) * time.Second
	switch {
	case here > 0:
		found = append(found, warn("`--option narinfo-cache-negative-ttl 0` or `--refresh` make Nix ask again; or wait, "+ttl.String()+" at most",
			"Nix remembers %s as absent from %s; of %d asked for anew the node has %d by now (%s)", count(m.absences, "path"), as, asked, here, name)...)
	case asked == 0:
		found = append(found, warn("once the node is up, `--option narinfo-cache-negative-ttl 0` makes Nix ask it again",
			"Nix remembers %s as absent from %s, and the node does not say whether they are (%s)", count(m.absences, "path"), as, name)...)
	default:
		found = append(found, ok("%s remembered as absent, rightly (%s)", count(m.absences, "path"), name)...)
	}
	return found, nil
}

// readMemory reads a file without changing anything in it or beside it. It returns nil if the
// node is not in it.
func readMemory(ctx context.Context, name, as string, fresh time.Time) (*memory, error) {
	// With write-ahead logging even a reader would make files beside it, unless the file is
	// taken as it is.
	if _, err := os.Stat(name); err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: name, RawQuery: "mode=ro&immutable=1"}).String())
	if err != nil {
		return nil, err
	}
	defer db.Close()
	at, _, _ := strings.Cut(as, "?")
	m := &memory{}
	var id, said int64
	err = db.QueryRowContext(ctx, `SELECT id, priority, timestamp FROM BinaryCaches WHERE url = ?1`, strings.TrimRight(at, "/")).Scan(&id, &m.priority, &said)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m.said = time.Unix(said, 0)
	rows, err := db.QueryContext(ctx, `SELECT hashPart FROM NARs WHERE cache = ?1 AND present = 0 AND timestamp > ?2 ORDER BY timestamp DESC`, id, fresh.Unix())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var part string
		if err := rows.Scan(&part); err != nil {
			return nil, err
		}
		m.absences++
		if h, err := nix.ParseStoreHash(part); err == nil && len(m.absent) < maxAsked {
			m.absent = append(m.absent, h)
		}
	}
	return m, rows.Err()
}

// hereNow asks the node for paths that Nix thinks absent, and returns how many it has, of how
// many it could say.
func (p *facts) hereNow(ctx context.Context, hashes []nix.StoreHash) (here, asked int) {
	if p.front == nil {
		return 0, 0
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var has, said atomic.Int64
	var wg sync.WaitGroup
	for _, h := range hashes {
		wg.Go(func() {
			_, err := p.askFront(ctx, "/"+h.String()+".narinfo", maxNarinfo)
			var no *answerError
			if err == nil {
				has.Add(1)
			}
			if err == nil || errors.As(err, &no) && strings.HasPrefix(no.status, "404") {
				said.Add(1)
			}
		})
	}
	wg.Wait()
	return int(has.Load()), int(said.Load())
}
