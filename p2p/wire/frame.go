// Package wire is what two nodes say to each other, as bytes: the frames of the session that
// each opens to the other, and the paths and headers of requests. Everything from outside is
// parsed here, within limits.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/nixp2p/nixp2p/p2p/inventory"
)

// Kind is the type of a frame. A receiver skips kinds that it does not know, so that new ones
// can be added without a new protocol.
type Kind uint8

// The frames of a session. Before the other side is admitted, only Challenge to Welcome are
// read.
const (
	Challenge Kind = 1 // from the answering side: ChallengeSize random bytes
	Proof     Kind = 2 // from the opening side: its own random bytes and its proofs
	Welcome   Kind = 3 // from the answering side: its proof; empty on an open site
	Ping      Kind = 4 // 8 bytes, to be returned
	Pong      Kind = 5
	Filter    Kind = 6  // inventory: everything
	Changes   Kind = 7  // inventory: what came and went since
	Peers     Kind = 8  // addresses of other nodes, a line each
	Refused   Kind = 9  // in place of Welcome, before the stream ends; empty
	Full      Kind = 10 // the same: admitted, but no inventory is taken; empty
	Name      Kind = 11 // how people call the machine; not on every site
	Zone      Kind = 12 // name of the zone that the sender is in
)

// Sizes of the small frames.
const (
	ChallengeSize = 32
	PingSize      = 8
	// maxProof is for the opener's random bytes and two proofs; a Welcome is shorter.
	maxProof = ChallengeSize + 2*32
	// maxUnknown is the most that is skipped of a kind that a newer version may send.
	maxUnknown = 64 << 10
)

// limit returns the most bytes that a frame of this kind may have.
func (k Kind) limit() int {
	switch k {
	case Challenge, Proof, Welcome, Refused, Full:
		return maxProof
	case Ping, Pong:
		return PingSize
	case Filter:
		return inventory.MaxFilterBytes
	case Changes:
		return inventory.MaxDeltaBytes
	case Peers:
		return maxPeers
	case Name:
		return maxName
	case Zone:
		return MaxZone
	default:
		return maxUnknown
	}
}

const frameHead = 1 + 4

// ErrFrame is wrapped by errors that say that the other side violates the protocol.
var ErrFrame = errors.New("wire: not a frame of this protocol")

// AppendFrame encodes a frame: kind, length in four bytes, big-endian, and the body.
func AppendFrame(b []byte, k Kind, body []byte) []byte {
	b = append(b, byte(k))
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

// readStep is how much room is made at a time: a length is only a claim until its bytes
// have come.
const readStep = 64 << 10

// ReadFrame reads one frame. Most allows kinds up to and including it, 0 all: a side that is
// not admitted yet gets no room for more.
func ReadFrame(r io.Reader, most Kind) (Kind, []byte, error) {
	k, n, err := ReadHead(r, most)
	if err != nil {
		return k, nil, err
	}
	body, err := ReadBody(r, n)
	return k, body, err
}

// ReadHead reads kind and length of a frame; ReadBody has to follow.
func ReadHead(r io.Reader, most Kind) (Kind, int, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, err
	}
	k, n := Kind(head[0]), binary.BigEndian.Uint32(head[1:])
	if int64(n) > int64(k.limit()) {
		return k, 0, fmt.Errorf("%w: kind %d with %d bytes", ErrFrame, k, n)
	}
	if most != 0 && k > most && k != Refused && k != Full {
		return k, 0, fmt.Errorf("%w: kind %d before the welcome", ErrFrame, k)
	}
	return k, int(n), nil
}

// ReadBody reads the n bytes of a frame whose head was read.
func ReadBody(r io.Reader, n int) ([]byte, error) {
	return ReadBodyStepwise(r, n, func(int) error { return nil })
}

// ReadBodyStepwise is ReadBody for large frames: room is asked before each step whether the
// body may take so many bytes.
func ReadBodyStepwise(r io.Reader, n int, room func(bytes int) error) ([]byte, error) {
	body := make([]byte, 0, min(n, readStep))
	for len(body) < n {
		at := len(body)
		step := min(n-at, max(readStep, at))
		if err := room(at + step); err != nil {
			return nil, err
		}
		body = append(body, make([]byte, step)...)
		if _, err := io.ReadFull(r, body[at:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return body, nil
}
