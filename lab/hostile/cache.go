package hostile

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/nixp2p/nixp2p/internal/httprange"
	"github.com/nixp2p/nixp2p/internal/nix"
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

// Answer answers requests for its paths, as Config.Answer.
func (l *WrongCache) Answer(ask wire.Request, off int64, head bool, w io.Writer) bool {
	if text := l.infos[ask.Question]; ask.IsInfo && text != nil {
		_, _ = fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		return true
	}
	size, known := l.sizes[ask.Nar]
	if !known || ask.IsInfo {
		return false
	}
	body := io.LimitReader(wrong{}, size)
	if name := l.files[ask.Form.File]; !ask.Form.IsRaw() {
		data, err := os.ReadFile(name)
		if err != nil {
			return false
		}
		data[len(data)/2] ^= 1 // correct up to its middle
		size, body = int64(len(data)), bytes.NewReader(data)
	}
	if off >= size {
		return false
	}
	if _, err := io.CopyN(io.Discard, body, off); err != nil {
		return false
	}
	status := "200 OK\r\n"
	if off > 0 {
		status = "206 Partial Content\r\nContent-Range: " + httprange.ContentRange(off, size-off, size) + "\r\n"
	}
	_, err := fmt.Fprintf(w, "HTTP/1.1 %sContent-Length: %d\r\n%s: %d\r\n\r\n", status, size-off, wire.HaveHeader, size)
	if err == nil && !head {
		_, _ = io.Copy(w, body)
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
