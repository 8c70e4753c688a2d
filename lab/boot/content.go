//go:build linux

package main

import (
	"bytes"
	"fmt"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// closure is a path of the upstream with all that it refers to.
type closure struct {
	top   string
	paths []string        // store paths, all of them
	nars  map[string]bool // what is asked of the upstream for them
	files map[string][]byte
}

// newClosure makes a closure of n paths of so many bytes each, as an upstream has it: NARs in
// files .nar.xz. The key signs it.
func newClosure(key nixtest.Key, name string, n, size int) (*closure, error) {
	c := &closure{nars: map[string]bool{}, files: map[string][]byte{}}
	var refs []nix.StorePath
	for i := range n {
		p := nixtest.NewPath(fmt.Sprintf("%s-%d", name, i), size)
		if i == n-1 {
			p.References = nix.SortPaths(refs)
			c.top = p.StorePath.String()
		}
		refs = append(refs, p.StorePath)
		c.paths = append(c.paths, p.StorePath.String())
		var file bytes.Buffer
		w, err := compress.NewStored(nix.XZ, &file, int64(len(p.NAR)))
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(p.NAR); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		info := nixtest.Compressed{Compression: nix.XZ, Bytes: file.Bytes()}.NarInfo(p, key)
		c.files["/"+p.Hash().String()+".narinfo"] = info.AppendText(nil)
		c.files["/"+info.URL] = file.Bytes()
		c.nars["/"+info.URL] = true
	}
	return c, nil
}
