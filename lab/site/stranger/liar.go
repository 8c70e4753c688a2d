//go:build linux

package stranger

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// lies are true narinfos, whose signatures anybody may show, with NARs that are not theirs.
type lies struct {
	hashes []nix.StoreHash
	infos  map[nix.Question][]byte
	sizes  map[nix.NarHash]int64
	files  map[nix.FileHash]string
}

// readLies reads a cache as nix copy --to file:// leaves it.
func readLies(dir string) (*lies, error) {
	l := &lies{infos: map[nix.Question][]byte{}, sizes: map[nix.NarHash]int64{}, files: map[nix.FileHash]string{}}
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
		l.hashes = append(l.hashes, hash)
		l.sizes[n.NarHash] = n.NarSize
		l.files[n.FileHash] = filepath.Join(dir, filepath.FromSlash(n.URL))
		// As peers write it: of the raw NAR.
		n.Compression, n.FileHash, n.FileSize = nix.None, nix.FileHash(n.NarHash), n.NarSize
		n.URL = nix.NARName{Store: hash, Nar: n.NarHash}.URL()
		l.infos[hash.Question()] = n.AppendText(nil)
	}
	return l, nil
}

// answer answers what the lies are about.
func (l *lies) answer(w io.Writer, req *http.Request) bool {
	ask, err := wire.ParseRequest(req.URL.Path)
	if err != nil {
		return false
	}
	if text := l.infos[ask.Question]; ask.IsInfo && text != nil {
		_, err = fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		return err == nil
	}
	size, known := l.sizes[ask.Nar]
	off, err := wire.ParseRange(req.Header.Get("Range"))
	if !known || ask.IsInfo || err != nil {
		return false
	}
	body := io.LimitReader(wrong{}, size)
	if name := l.files[ask.Form.File]; !ask.Form.IsRaw() {
		data, err := os.ReadFile(name)
		if err != nil {
			return false
		}
		data[len(data)/2] ^= 1 // a file that is right up to its middle
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
		status = "206 Partial Content\r\nContent-Range: " + wire.FormatContentRange(off, size) + "\r\n"
	}
	if _, err := fmt.Fprintf(w, "HTTP/1.1 %sContent-Length: %d\r\n%s: %d\r\n\r\n", status, size-off, wire.HaveHeader, size); err != nil {
		return false
	}
	if req.Method != http.MethodHead {
		_, err = io.Copy(w, body)
	}
	return err == nil
}

// wrong are the bytes of no NAR.
type wrong struct{}

func (wrong) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}
