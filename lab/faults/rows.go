package main

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// row is one fault of a cache.
type row struct {
	group string
	name  string
	quick bool // takes seconds at most with nixp2p in between

	url     func(k *worker) string          // of a cache that is more than faulty; nil: k.ill
	network bool                            // needs the namespace
	info    func(k *worker) []nixtest.Fault // of narinfos
	file    func(k *worker) []nixtest.Fault // of NAR files
	all     func(k *worker) []nixtest.Fault // of everything
	// mayFail: nixp2p learns of it when wrong bytes have left, or not at all. Then it takes another
	// substituter.
	mayFail bool
	// known is what Nix remembers of the first substituter from when all was well.
	known knowledge
	stop  bool // the cache is gone
}

// knowledge is what Nix has in its disk cache.
type knowledge int

const (
	nothing knowledge = iota
	cacheInfo
	narinfos
)

const (
	ofQuestions = "the cache, or its narinfos"
	ofNARs      = "its NARs"
)

func fixed(faults ...nixtest.Fault) func(*worker) []nixtest.Fault {
	return func(*worker) []nixtest.Fault { return faults }
}

// slow is a line of 1 KB/s.
const slow = 1000

func rows() []*row {
	leaving := func(k *worker) string { return k.leaving.URL() }
	to := func(url string) func(*worker) string { return func(*worker) string { return url } }
	all := []*row{
		{name: "connections are refused", stop: true, url: leaving, quick: true},
		{name: "refused, and Nix remembers that it was a cache", stop: true, url: leaving, known: cacheInfo, quick: true},
		{name: "refused, and Nix remembers its narinfos", stop: true, url: leaving, known: narinfos, quick: true},
		{name: "no route", url: to("http://" + noRoute), network: true, quick: true},
		{name: "packets are lost", url: to("http://" + noAnswer), network: true, quick: true},
		{name: "the name does not resolve", url: to("http://" + noName), network: true, quick: true},
		{name: "TLS: certificate of an unknown authority", url: func(k *worker) string { return k.illTLS.URL() }, quick: true},
		{name: "hangs before the headers of everything", all: fixed(nixtest.Fault{Do: nixtest.Hang, At: nixtest.BeforeHeaders})},
		{name: "narinfo: hangs before the headers", info: fixed(nixtest.Fault{Do: nixtest.Hang, At: nixtest.BeforeHeaders})},
		{name: "narinfo: hangs in the body", info: fixed(nixtest.Fault{Do: nixtest.Hang, At: 100})},
	}
	for _, status := range []int{500, 502, 503, 429, 403, 401, 400} {
		all = append(all, &row{name: fmt.Sprintf("narinfo: %d", status), info: fixed(nixtest.Fault{Status: status}), quick: status%100 < 3})
	}
	all = append(all,
		&row{name: "narinfo: a page of HTML", info: fixed(nixtest.Fault{Body: []byte("<html><body>please log in</body></html>\n")}), quick: true},
		&row{name: "narinfo: truncated", info: fixed(nixtest.Fault{Do: nixtest.Cut, At: 100}), quick: true},
		&row{name: "narinfo: reset", info: fixed(nixtest.Fault{Do: nixtest.Reset, At: 100})},
		&row{name: "narinfo: 6 s late", info: fixed(nixtest.Fault{Delay: 6 * time.Second})},
		&row{name: "narinfo: 1 KB/s", info: fixed(nixtest.Fault{Rate: slow})},
	)
	for _, r := range all {
		r.group = ofQuestions
	}
	return append(all, fileRows()...)
}

func fileRows() []*row {
	var all []*row
	for _, status := range []int{500, 502, 503, 429, 404, 403, 401} {
		all = append(all, &row{name: fmt.Sprintf("NAR: %d", status), file: fixed(nixtest.Fault{Status: status}), quick: status%100 > 2})
	}
	half := func(f nixtest.Fault) func(*worker) []nixtest.Fault {
		return func(k *worker) []nixtest.Fault {
			f.At, f.Only = int64(len(k.ill.File(k.top)))/2, k.large(k.ill)
			return []nixtest.Fault{f}
		}
	}
	all = append(all,
		&row{name: "NAR: hangs before the headers", file: fixed(nixtest.Fault{Do: nixtest.Hang, At: nixtest.BeforeHeaders})},
		&row{name: "NAR: hangs in the body", file: half(nixtest.Fault{Do: nixtest.Hang})},
		&row{name: "NAR: truncated", file: half(nixtest.Fault{Do: nixtest.Cut}), quick: true},
		&row{name: "NAR: truncated, no ranges", file: half(nixtest.Fault{Do: nixtest.Cut, NoRange: true})},
		&row{name: "NAR: truncated, offers ranges but answers 200", file: half(nixtest.Fault{
			Do: nixtest.Cut, NoRange: true, Header: map[string]string{"Accept-Ranges": "bytes"},
		})},
		&row{name: "NAR: truncated once", file: half(nixtest.Fault{Do: nixtest.Cut, Times: 1}), quick: true},
		&row{name: "NAR: truncated, but looks whole", file: half(nixtest.Fault{Do: nixtest.QuietEnd}), quick: true},
		&row{name: "NAR: reset", file: half(nixtest.Fault{Do: nixtest.Reset}), quick: true},
		&row{name: "NAR: 1 MiB too long", file: func(k *worker) []nixtest.Fault {
			return []nixtest.Fault{{Do: nixtest.Extra, At: 1 << 20, Only: k.large(k.ill)}}
		}, quick: true},
		&row{name: "NAR: Content-Length is too large", file: func(k *worker) []nixtest.Fault {
			return []nixtest.Fault{{Length: int64(len(k.ill.File(k.top))) + 1000, Only: k.large(k.ill)}}
		}, quick: true},
		// A multiple of the pieces that the server writes.
		&row{name: "NAR: Content-Length is too small", file: func(k *worker) []nixtest.Fault {
			return []nixtest.Fault{{Length: 1 << 20, Only: k.large(k.ill)}}
		}, quick: true},
		&row{name: "NAR: 1 KB/s", file: fixed(nixtest.Fault{Rate: slow})},
		&row{name: "NAR: FileHash in the narinfo is wrong", info: wrongFileHash, quick: true},
		&row{name: "NAR: decompression bomb, FileHash fits", info: bomb, quick: true, mayFail: true},
	)
	all = append(all, flips("xz file", func(k *worker) *nixtest.Upstream { return k.ill })...)
	all = append(all, flips("raw NAR", func(k *worker) *nixtest.Upstream { return k.illRaw })...)
	for _, r := range all {
		r.group = ofNARs
	}
	return all
}

// flips are one wrong byte near the beginning, in the middle, and near the end.
func flips(what string, of func(*worker) *nixtest.Upstream) (all []*row) {
	for _, place := range []struct {
		name string
		at   func(size int64) int64
	}{
		{"first", func(int64) int64 { return 500 }},
		{"middle", func(size int64) int64 { return size / 2 }},
		{"last", func(size int64) int64 { return size - 500 }},
	} {
		all = append(all, &row{
			name: "NAR: wrong byte in the " + place.name + " block of the " + what, quick: place.name == "last", mayFail: place.name != "last",
			url: func(k *worker) string { return of(k).URL() },
			file: func(k *worker) []nixtest.Fault {
				u := of(k)
				return []nixtest.Fault{{Do: nixtest.Flip, At: place.at(int64(len(u.File(k.top)))), Only: k.large(u)}}
			},
		})
	}
	return all
}

// edited is the narinfo of the large path, changed.
func edited(k *worker, change func(n *nix.NarInfo)) []nixtest.Fault {
	n, err := nix.ParseNarInfo(k.ill.NarInfo(k.top))
	if err != nil {
		panic(err)
	}
	change(n)
	return []nixtest.Fault{{Body: n.AppendText(nil), Only: func(r *http.Request) bool {
		return strings.Contains(r.URL.Path, k.top.Hash().String())
	}}}
}

func wrongFileHash(k *worker) []nixtest.Fault {
	return edited(k, func(n *nix.NarInfo) { n.FileHash[0] ^= 1 })
}

// bomb is a small file that would fill the disk: the narinfo, whose URL nobody signs, leads
// to it.
func bomb(k *worker) []nixtest.Fault {
	const at = "nar/bomb.nar.zst"
	k.ill.Serve("/"+at, k.bomb)
	return edited(k, func(n *nix.NarInfo) {
		n.URL, n.Compression, n.FileSize, n.FileHash = at, nix.Zstd, int64(len(k.bomb)), fileHash(k.bomb)
	})
}
