package upstream

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// directory is a cache that lies in a directory, as "nix copy --to file://..." makes it. It
// answers requests as a server would, so that all else is the same.
type directory struct {
	path string
	// literal is the path as the URL has it: Nix before 2.19 does not decode %41 in a directory's name. It is
	// looked at where path is not there.
	literal string
}

var (
	errNoDirectory = errors.New("no such directory")
	errOutside     = errors.New("the URL in the narinfo leads out of the directory; a link in it may")
)

// RoundTrip answers with 200 or 206 and the file, or 404. As for Nix, links may lead anywhere: only
// what a trusted key has signed leaves. A name does not lead out of the directory.
func (d directory) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	// Looked at each time: a disk may come and go.
	isDir := func(path string) bool { stat, err := os.Stat(path); return err == nil && stat.IsDir() }
	root := d.path
	if !isDir(root) {
		if root = d.literal; !isDir(root) {
			return nil, fmt.Errorf("%w: %s", errNoDirectory, d.path)
		}
	}
	name := find(root, strings.TrimPrefix(req.URL.Path, d.path))
	if within, err := filepath.Rel(root, name); err != nil || !filepath.IsLocal(within) {
		return nil, errOutside
	}
	file := regular(name)
	if f, err := file.Open(""); err == nil {
		_ = f.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.URL.Path = "/file" // some names have a meaning for a file server
	resp, err := http.NewFileTransportFS(file).RoundTrip(req)
	if err == nil {
		if n, err := strconv.ParseInt(resp.Header.Get("Content-Length"), 10, 64); err == nil {
			resp.ContentLength = n
		}
	}
	return resp, err
}

// find returns where a file of the directory root lies: what a narinfo says as it is, which is how Nix
// reads it, or as the URL that it is on a server.
func find(root, text string) string {
	at := func(name string) string { return filepath.Join(root, name) }
	if _, err := os.Lstat(at(text)); err != nil {
		if to, err := url.Parse(text); err == nil {
			return at(to.Path)
		}
	}
	return at(text)
}

// regular is a file system with one file, under any name, if it is a regular one.
type regular string

// Open does not wait for the other end of a named pipe.
func (r regular) Open(string) (fs.File, error) {
	file, err := os.OpenFile(string(r), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ENOTDIR) {
		return nil, fs.ErrNotExist
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
