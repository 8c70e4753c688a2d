package upstream

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/nixp2p/nixp2p/internal/httprange"
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
	resp := &http.Response{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Request: req, Body: http.NoBody}
	name := strings.TrimPrefix(req.URL.Path, string(d))
	// Not waiting for the other end of a named pipe.
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		resp.StatusCode = http.StatusNotFound
		return resp, nil
	case err != nil:
		return nil, err
	}
	stat, err := file.Stat()
	switch {
	case err != nil:
		_ = file.Close()
		return nil, err
	case !stat.Mode().IsRegular():
		_ = file.Close()
		resp.StatusCode = http.StatusNotFound
		return resp, nil
	}
	return serve(req, resp, file, stat.Size())
}

func serve(req *http.Request, resp *http.Response, file *os.File, size int64) (*http.Response, error) {
	resp.StatusCode, resp.ContentLength = http.StatusOK, size
	from, err := httprange.ParseFrom(req.Header.Get("Range"))
	switch {
	case err != nil || from > 0 && from >= size:
		_ = file.Close()
		resp.StatusCode, resp.ContentLength = http.StatusRequestedRangeNotSatisfiable, 0
		return resp, nil
	case from > 0:
		resp.StatusCode, resp.ContentLength = http.StatusPartialContent, size-from
		resp.Header.Set("Content-Range", httprange.ContentRange(from, size-from, size))
	}
	if _, err := file.Seek(from, io.SeekStart); err != nil {
		_ = file.Close()
		return nil, err
	}
	// A file that is cut while it is read ends too early, and that is noticed.
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(file, size-from), file}
	return resp, nil
}
