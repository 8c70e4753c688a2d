package hostile

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// WrongCache has true narinfos, which any peer can show, and wrong NARs.
type WrongCache struct {
	Hashes []nix.StoreHash
	infos  map[nix.Question][]byte
	sizes  map[nix.NarHash]int64
	files  map[nix.FileHash]string
}

// ReadWrong reads a cache that `nix copy --to file://` has written.
func ReadWrong(dir string) (*WrongCache, error) {
	l := &WrongCache{infos: map[nix.Question][]byte{}, sizes: map[nix.NarHash]int64{}, files: map[nix.FileHash]string{}}
	names, err := filepath.Glob(filepath.Join(dir, "*.narinfo"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		n, err := nix.ParseNarInfo(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		hash := n.StorePath.Hash()
		l.Hashes = append(l.Hashes, hash)
		l.sizes[n.NarHash] = n.NarSize
		l.files[n.FileHash] = filepath.Join(dir, filepath.FromSlash(n.URL))
		// As peers write it: of the raw NAR.
		n.Compression, n.FileHash, n.FileSize = nix.None, nix.FileHash(n.NarHash), n.NarSize
		n.URL = nix.NARName{Store: hash, Nar: n.NarHash}.URL()
		l.infos[hash.Question()] = n.AppendText(nil)
	}
	return l, nil
}

// Kinds of hostile peers that know a cache.
const (
	Wrong = "wrong" // claims all and sends wrong bytes
	Slow  = "slow"  // claims all and sends the right files at 40 KiB/s, and wrong NARs as slowly
	Lines = "lines" // claims all, adds lines that nobody signed to narinfos, and has no NARs
	Lead  = "lead"  // claims nothing; as coordinator it leads to itself, and gives a byte every 6 s
)

// AllKinds are the kinds, the one that lies most first.
var AllKinds = []string{Wrong, Slow, Lines, Lead}

// behave makes cfg that of a kind of peer; id is that of the peer.
func (l *WrongCache) behave(cfg *Config, kind string, id func() string) {
	cfg.Answer = func(ask wire.Request, off int64, head bool, w io.Writer) bool {
		return l.answer(kind, ask, off, head, w)
	}
	if kind == Lead {
		cfg.Lease = func(r lease.Request) lease.Answer { return LeadTo([]string{id()}, nil, 0)(r) }
		return
	}
	cfg.Claim = append(cfg.Claim, l.Hashes...)
}

// answer answers requests for its paths, as Config.Answer.
func (l *WrongCache) answer(kind string, ask wire.Request, off int64, head bool, w io.Writer) bool {
	if ask.IsInfo {
		text := l.infos[ask.Question]
		if text == nil || kind == Lead {
			return false
		}
		if kind == Lines {
			text = fmt.Appendf(bytes.Clone(text), "CA: fixed:r:sha256:%s\nSig: %s:%s\n", strings.Repeat("1", 52), strings.Repeat("k", 100_000), strings.Repeat("A", 86)+"==")
		}
		Reply(w, text)
		return true
	}
	size, known := l.sizes[ask.Nar]
	if !known || kind == Lines {
		return false
	}
	body := io.LimitReader(wrong{}, size)
	if name := l.files[ask.Form.File]; !ask.Form.IsRaw() {
		data, err := os.ReadFile(name)
		if err != nil {
			return false
		}
		if kind == Wrong {
			data[len(data)/2] ^= 1 // correct up to its middle
		}
		size, body = int64(len(data)), bytes.NewReader(data)
	}
	if off >= size {
		return false
	}
	if _, err := io.CopyN(io.Discard, body, off); err != nil {
		return false
	}
	present, step, every := size, 32<<10, time.Duration(0)
	switch kind {
	case Slow:
		step, every = 4<<10, 100*time.Millisecond
	case Lead:
		present, step, every = off, 1, 6*time.Second
	}
	Head(w, off, size, Have(present))
	for piece := make([]byte, step); !head; {
		n, err := io.ReadFull(body, piece)
		if _, werr := w.Write(piece[:n]); err != nil || werr != nil {
			break
		}
		time.Sleep(every)
	}
	return true
}

// wrong are bytes that are not a NAR.
type wrong struct{}

func (wrong) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}
