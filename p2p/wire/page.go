package wire

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
)

// pagePath is where a node lists what it shares. An older version answers that nothing is there.
const pagePath = "/shared"

// PagePath returns the path of a request for the page with numbers below before: "/shared/<before>", or
// "/shared" for the newest one if before is 0.
func PagePath(before uint64) string {
	if before == 0 {
		return pagePath
	}
	return pagePath + "/" + strconv.FormatUint(before, 10)
}

// ParsePagePath reads what PagePath wrote, and reports whether path is one of its.
func ParsePagePath(path string) (before uint64, ok bool) {
	if path == pagePath {
		return 0, true
	}
	number, ok := strings.CutPrefix(path, pagePath+"/")
	before, err := strconv.ParseUint(number, 10, 64)
	return before, ok && err == nil && before > 0 && PagePath(before) == path
}

const (
	// MaxPage is how many paths a page has at most, NewestPage the same of the first page of a list,
	// which is asked for again and again.
	MaxPage    = 1024
	NewestPage = 32

	pageHead  = 8 + 8
	pageEntry = 20 + 32 + 8

	// MaxPageBytes is the size of the longest page.
	MaxPageBytes int64 = pageHead + MaxPage*pageEntry
)

// AppendPage encodes a page: First, Next, then store hash, NAR hash and size of each path, all
// numbers as 8 bytes, the highest first.
func AppendPage(b []byte, p source.SharedPage) []byte {
	b = binary.BigEndian.AppendUint64(b, p.First)
	b = binary.BigEndian.AppendUint64(b, p.Next)
	for _, s := range p.Paths {
		b = append(append(b, s.Store[:]...), s.Nar[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(s.Size))
	}
	return b
}

// ParsePage reads what AppendPage wrote. A list goes down, so that whoever reads it comes to its end.
func ParsePage(b []byte) (p source.SharedPage, err error) {
	if len(b) < pageHead || int64(len(b)) > MaxPageBytes || (len(b)-pageHead)%pageEntry != 0 {
		return source.SharedPage{}, fmt.Errorf("%w: a page of %d bytes", ErrRequest, len(b))
	}
	p.First, p.Next = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	b = b[pageHead:]
	if none := len(b) == 0; none != (p.First == 0) || none && p.Next != 0 || p.Next > p.First {
		return source.SharedPage{}, fmt.Errorf("%w: numbers of a page", ErrRequest)
	}
	for ; len(b) > 0; b = b[pageEntry:] {
		s := source.SharedPath{Store: nix.StoreHash(b), Nar: nix.NarHash(b[len(nix.StoreHash{}):])}
		if s.Size = int64(binary.BigEndian.Uint64(b[pageEntry-8:])); s.Size < 0 {
			return source.SharedPage{}, fmt.Errorf("%w: size of a path", ErrRequest)
		}
		p.Paths = append(p.Paths, s)
	}
	return p, nil
}
