package upstream

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// directory is a cache that lies in a directory, as "nix copy --to file://..." makes it. It
// answers requests as a server would, so that all else is the same.
type directory string

var errNoDirectory = errors.New("no such directory")

// RoundTrip answers with 200 or 206 and the file, or 404. Nothing outside of the directory
// is opened, whatever links say.
func (d directory) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	// Opened each time: a disk may come and go.
	root, err := os.OpenRoot(string(d))
	if err != nil {
		// Its text alone: the error must not count as that of a missing file.
		return nil, fmt.Errorf("%w: %s", errNoDirectory, err.Error())
	}
	defer root.Close()
	req = req.Clone(req.Context())
	req.URL.Path = "/" + strings.TrimPrefix(req.URL.Path, string(d))
	resp, err := http.NewFileTransportFS(files{root}).RoundTrip(req)
	if err == nil {
		if n, err := strconv.ParseInt(resp.Header.Get("Content-Length"), 10, 64); err == nil {
			resp.ContentLength = n
		}
	}
	return resp, err
}

// files has only the regular files in a directory.
type files struct{ root *os.Root }

// Open does not wait for the other end of a named pipe.
func (f files) Open(name string) (fs.File, error) {
	file, err := f.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrPermission) {
		err = errors.New(err.Error()) // which is not absent
	}
	if err != nil {
		return nil, err
	}
	if stat, err := file.Stat(); err != nil || !stat.Mode().IsRegular() {
		_ = file.Close()
		return nil, fs.ErrNotExist
	}
	return file, nil
}
