package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/lab/hostile"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// lie is one way in which a peer is false. What is nil is done honestly.
type lie struct {
	name  string
	quick bool
	info  func(w io.Writer, honest []byte, other nixtest.Path)
	nar   func(w io.Writer, honest []byte, off int64)
	// filter is sent in place of an honest inventory.
	filter []byte
	// attack goes on beside the command, until ctx ends, and says how far it came. It calls
	// ready when Nix may begin.
	attack func(ctx context.Context, l *hostile.Peer, ready func()) string
}

// changed gives what edit makes of the NAR, and says how long that is.
func changed(edit func(b []byte) []byte) func(io.Writer, []byte, int64) {
	return func(w io.Writer, honest []byte, off int64) {
		b := edit(bytes.Clone(honest))
		hostile.Give(w, b, off, int64(len(b)))
	}
}

func flip(at func(n int) int) func(io.Writer, []byte, int64) {
	return changed(func(b []byte) []byte {
		b[at(len(b))] ^= 1
		return b
	})
}

func lies() []*lie {
	noise := bytes.Repeat([]byte("noise "), 10_000)
	return append([]*lie{
		{name: "nothing (an honest peer, for comparison)", quick: true},
		{name: "NAR: wrong first byte", quick: true, nar: flip(func(int) int { return 0 })},
		{name: "NAR: wrong byte in the middle", nar: flip(func(n int) int { return n / 2 })},
		{name: "NAR: wrong last byte", nar: flip(func(n int) int { return n - 1 })},
		{name: "NAR: short, and says so", nar: changed(func(b []byte) []byte { return b[:len(b)-1] })},
		{name: "NAR: short, and does not say so", nar: func(w io.Writer, honest []byte, off int64) {
			hostile.Give(w, honest[:len(honest)-1], off, int64(len(honest)))
		}},
		{name: "NAR: long, and says so", nar: changed(func(b []byte) []byte { return append(b, 0) })},
		{name: "NAR: another one", nar: changed(func(b []byte) []byte {
			return nixtest.NewPath("another", len(b)).NAR[:len(b)]
		})},
		{name: "NAR: never-ending", nar: func(w io.Writer, honest []byte, off int64) {
			hostile.Give(w, honest, off, int64(len(honest)))
			hostile.Endless(w, noise)
		}},
		{name: "NAR: never-ending, of another size each time", nar: func(w io.Writer, _ []byte, _ int64) {
			_, _ = fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", int64(1)<<60)
			hostile.Endless(w, noise)
		}},
		{name: "NAR: never-ending header", nar: func(w io.Writer, _ []byte, _ int64) {
			_, _ = io.WriteString(w, "HTTP/1.1 200 OK\r\n")
			hostile.Endless(w, bytes.Repeat([]byte("X: y\r\n"), 10_000))
		}},
		{name: "NAR: a byte a second", nar: func(w io.Writer, honest []byte, off int64) {
			_, _ = fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(honest))
			hostile.Drip(w, honest, 1, time.Second)
		}},
		{name: "NAR: a byte a second, as if it were coming in itself", nar: func(w io.Writer, honest []byte, _ int64) {
			_, _ = fmt.Fprintf(w, "HTTP/1.1 200 OK\r\n%s: 1\r\nContent-Length: %d\r\n\r\n", wire.HaveHeader, len(honest))
			hostile.Drip(w, honest, 1, time.Second)
		}},
		{name: "narinfo and NAR: hears the question and never answers", info: silent[nixtest.Path], nar: silent[int64]},
	}, otherLies(noise)...)
}

// silent says nothing for longer than anybody waits.
func silent[T any](io.Writer, []byte, T) { <-time.After(time.Minute) }

// otherLies are not about NARs.
func otherLies(noise []byte) []*lie {
	return []*lie{
		{name: "narinfo: of another path", quick: true, info: func(w io.Writer, _ []byte, other nixtest.Path) {
			hostile.Reply(w, other.Signed(nixtest.NewKey(keyName)).AppendText(nil))
		}},
		{name: "narinfo: another NarSize under the same signature", info: func(w io.Writer, honest []byte, _ nixtest.Path) {
			n, err := nix.ParseNarInfo(honest)
			if err != nil {
				panic(err)
			}
			n.NarSize++
			hostile.Reply(w, n.AppendText(nil))
		}},
		{name: "narinfo: signed by a stranger", info: func(w io.Writer, honest []byte, _ nixtest.Path) {
			n, err := nix.ParseNarInfo(honest)
			if err != nil {
				panic(err)
			}
			n.Sigs = nil
			nixtest.NewKey("stranger-1").Sign(n)
			hostile.Reply(w, n.AppendText(nil))
		}},
		{name: "narinfo: never-ending", info: func(w io.Writer, _ []byte, _ nixtest.Path) {
			_, _ = io.WriteString(w, "HTTP/1.1 200 OK\r\n\r\n")
			hostile.Endless(w, bytes.Repeat([]byte("Sig: x\n"), 10_000))
		}},
		{name: "inventory: says yes and has nothing", info: func(w io.Writer, _ []byte, _ nixtest.Path) { hostile.Refuse(w) },
			nar: func(w io.Writer, _ []byte, _ int64) { hostile.Refuse(w) }},
		{name: "inventory: the largest filter, all ones", filter: allOnes(), info: func(w io.Writer, _ []byte, _ nixtest.Path) { hostile.Refuse(w) }},
		{name: "inventory: no filter but noise", filter: noise},
		{name: "10^6 changes of the inventory", attack: func(ctx context.Context, l *hostile.Peer, ready func()) string {
			ready()
			n, _ := l.Changes(ctx, 1_000_000)
			return fmt.Sprintf("%d sent", n)
		}},
		{name: "1,000 connections of 1,000 identities", attack: func(ctx context.Context, l *hostile.Peer, ready func()) string {
			n, _ := l.Connections(ctx, 1000, ready)
			return fmt.Sprintf("%d came about", n)
		}},
		{name: "slow-loris: 1,000 requests, a byte a second", attack: func(ctx context.Context, l *hostile.Peer, ready func()) string {
			ready()
			n, _ := l.Loris(ctx, 1000)
			return fmt.Sprintf("%d at a time", n)
		}},
	}
}

// allOnes is a filter of three million keys with all bits set.
func allOnes() []byte {
	const length, segments = 1 << 16, 48
	b := []byte{1}
	b = binary.BigEndian.AppendUint32(b, 3<<20)
	b = binary.BigEndian.AppendUint64(b, 1)
	b = binary.BigEndian.AppendUint32(b, length)
	b = binary.BigEndian.AppendUint32(b, segments)
	return append(b, bytes.Repeat([]byte{0xff}, 2*length*(segments+2))...)
}
