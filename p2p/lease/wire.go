package lease

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Version is the first byte of every message. Any other value is refused.
const Version = 1

// Limits of what is read.
const (
	// MaxMessage bounds an encoded Request or Answer: a full list of sources and their
	// addresses takes less.
	MaxMessage = 4 << 10
	// MaxNodeID is longer than any peer ID.
	MaxNodeID = 64
	// maxAddr is enough for a multiaddr with a peer ID.
	maxAddr = 255
	// maxSize is larger than any NAR; it keeps sums from overflowing.
	maxSize = 1 << 50
)

// ErrMessage is wrapped by errors about malformed messages.
var ErrMessage = errors.New("lease: malformed message")

// A message is, with integers big-endian, the version and the verb or kind, a byte each; then for
//
//	Request    nar [32], flags, hops, form, size [8], bytes [8], got [8], from, tried, failed
//	Noted      nothing
//	Fetch      milliseconds [4]
//	Follow     a list of: node, address, form, size [8], bytes [8], got [8]
//	Redirect  node, address
//
// where a form is a byte (0 raw, 1 xz, 2 zstd) and for a file its hash [32], a node or
// address is a byte of length and that many bytes, and a list is a byte of length and that
// many elements. The only flag is 1, Alone. There is one encoding for each message.
const (
	formRaw  = 0
	formXZ   = 1
	formZstd = 2

	flagAlone = 1
)

// Append encodes the request, which must be one that DecodeRequest accepts. Lists that are
// too long are cut.
func (r Request) Append(b []byte) []byte {
	b = append(b, Version, byte(r.Verb))
	b = append(b, r.Nar[:]...)
	var flags byte
	if r.Alone {
		flags |= flagAlone
	}
	b = append(b, flags, byte(r.Hops))
	b = appendForm(b, r.Form, r.Size, r.Bytes, r.Got)
	b = appendText(b, string(r.From))
	b = appendNodes(b, r.Tried)
	return appendNodes(b, r.Failed)
}

// Append encodes the answer, which must be one that DecodeAnswer accepts. A list that is too
// long is cut, an address that is too long is left out.
func (a Answer) Append(b []byte) []byte {
	b = append(b, Version, byte(a.Kind))
	switch a.Kind {
	case Fetch:
		b = binary.BigEndian.AppendUint32(b, uint32(min(max(a.Term, 0), Term).Milliseconds()))
	case Follow:
		list := a.Sources[:min(len(a.Sources), MaxSources)]
		b = append(b, byte(len(list)))
		for _, s := range list {
			b = appendText(b, string(s.Node))
			b = appendAddr(b, s.Addr)
			b = appendForm(b, s.Form, s.Size, s.Bytes, s.Got)
		}
	case Redirect:
		b = appendText(b, string(a.Node))
		b = appendAddr(b, a.Addr)
	}
	return b
}

func appendForm(b []byte, f nix.Form, size, have, got int64) []byte {
	switch f.Compression {
	case nix.XZ:
		b = append(append(b, formXZ), f.File[:]...)
	case nix.Zstd:
		b = append(append(b, formZstd), f.File[:]...)
	default:
		b = append(b, formRaw)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(size))
	b = binary.BigEndian.AppendUint64(b, uint64(have))
	return binary.BigEndian.AppendUint64(b, uint64(max(got, have)))
}

func appendText(b []byte, s string) []byte {
	return append(append(b, byte(len(s))), s...)
}

func appendAddr(b []byte, s string) []byte {
	if len(s) > maxAddr {
		s = ""
	}
	return appendText(b, s)
}

func appendNodes(b []byte, nodes []NodeID) []byte {
	nodes = nodes[:min(len(nodes), maxNamed)]
	b = append(b, byte(len(nodes)))
	for _, n := range nodes {
		b = appendText(b, string(n))
	}
	return b
}

// DecodeRequest reads what Request.Append wrote. Errors wrap ErrMessage.
func DecodeRequest(b []byte) (Request, error) {
	d := newDecoder(b)
	r := Request{Verb: Verb(d.byte())}
	copy(r.Nar[:], d.take(len(r.Nar)))
	flags := d.byte()
	r.Alone, r.Hops = flags&flagAlone != 0, int(d.byte())
	d.must(r.Verb >= Ask && r.Verb <= Release, "verb")
	d.must(flags&^flagAlone == 0, "flags")
	d.must(r.Hops <= MaxHops && (r.Verb == Ask || r.Hops == 0), "hops")
	r.Form, r.Size, r.Bytes, r.Got = d.form()
	d.must(r.Verb != Ask || r.Bytes < r.Size, "asks for what it has")
	r.From = NodeID(d.text(MaxNodeID))
	d.must(r.Verb == Progress || r.From == "", "from")
	r.Tried, r.Failed = d.nodes(), d.nodes()
	d.must(r.Verb == Ask || r.Tried == nil, "tried")
	if err := d.end(); err != nil {
		return Request{}, err
	}
	return r, nil
}

// DecodeAnswer reads what Answer.Append wrote. Errors wrap ErrMessage.
func DecodeAnswer(b []byte) (Answer, error) {
	d := newDecoder(b)
	a := Answer{Kind: Kind(d.byte())}
	switch a.Kind {
	case Noted:
	case Fetch:
		a.Term = time.Duration(binary.BigEndian.Uint32(d.take(4))) * time.Millisecond
		d.must(a.Term <= Term, "term")
	case Follow:
		n := int(d.byte())
		d.must(n > 0 && n <= MaxSources, "sources")
		for range n {
			if d.err != nil {
				break
			}
			s := Source{Node: d.node(), Addr: d.text(maxAddr)}
			s.Form, s.Size, s.Bytes, s.Got = d.form()
			a.Sources = append(a.Sources, s)
		}
	case Redirect:
		a.Node, a.Addr = d.node(), d.text(maxAddr)
	default:
		d.must(false, "kind")
	}
	if err := d.end(); err != nil {
		return Answer{}, err
	}
	return a, nil
}

// decoder reads a message; after the first error it reads zeros.
type decoder struct {
	b   []byte
	err error
}

func newDecoder(b []byte) *decoder {
	d := &decoder{b: b}
	d.must(len(b) <= MaxMessage, "length")
	d.must(d.byte() == Version, "version")
	return d
}

func (d *decoder) must(ok bool, what string) {
	if !ok && d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrMessage, what)
	}
}

func (d *decoder) take(n int) []byte {
	d.must(len(d.b) >= n, "truncated")
	if d.err != nil {
		return make([]byte, n)
	}
	part := d.b[:n]
	d.b = d.b[n:]
	return part
}

func (d *decoder) byte() byte { return d.take(1)[0] }

func (d *decoder) text(most int) string {
	n := int(d.byte())
	d.must(n <= most, "name")
	return string(d.take(min(n, most)))
}

func (d *decoder) node() NodeID {
	id := NodeID(d.text(MaxNodeID))
	d.must(id != "", "empty node")
	return id
}

func (d *decoder) nodes() (list []NodeID) {
	n := int(d.byte())
	d.must(n <= maxNamed, "nodes")
	for range n {
		if d.err != nil {
			return nil
		}
		list = append(list, d.node())
	}
	return list
}

func (d *decoder) form() (f nix.Form, size, have, got int64) {
	switch d.byte() {
	case formRaw:
	case formXZ:
		f.Compression = nix.XZ
	case formZstd:
		f.Compression = nix.Zstd
	default:
		d.must(false, "form")
	}
	if f.Compression != "" {
		copy(f.File[:], d.take(len(f.File)))
		d.must(f.File != nix.FileHash{}, "no file hash")
	}
	size = int64(binary.BigEndian.Uint64(d.take(8)))
	have = int64(binary.BigEndian.Uint64(d.take(8)))
	got = int64(binary.BigEndian.Uint64(d.take(8)))
	d.must(size > 0 && size <= maxSize && have >= 0 && have <= got && got <= size, "bytes")
	return f, size, have, got
}

func (d *decoder) end() error {
	d.must(len(d.b) == 0, "trailing bytes")
	return d.err
}
