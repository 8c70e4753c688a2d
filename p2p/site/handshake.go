package site

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/p2p/swarmkey"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// Each node opens one session to each connected peer: there it proves that it belongs to the
// site, tells its inventory and sends pings. What it is told comes over the session that the
// other side opened.

const (
	handshakeTime = 10 * time.Second
	writeTime     = 10 * time.Second
	filterTime    = 30 * time.Second
)

var (
	errNotAdmitted = errors.New("the other side does not belong to this site")
	errFull        = errors.New("the other side has no room for another inventory")
	errDead        = errors.New("nothing heard")
	errDeadConn    = errors.New("nothing heard over this connection, but over another one")
)

// stream is what a session needs of a libp2p stream.
type stream interface {
	io.ReadWriter
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// introduce is the opening side: it proves to the other side that this node belongs to its
// site, and has it prove the same. Admitted is called when the other side has.
func introduce(s stream, keys swarmkey.Keys, self, other peer.ID, admitted func()) error {
	_ = s.SetDeadline(time.Now().Add(handshakeTime))
	defer func() { _ = s.SetDeadline(time.Time{}) }()
	pair := swarmkey.Pair{Opener: string(self), Answerer: string(other)}
	k, challenge, err := wire.ReadFrame(s, wire.Challenge)
	if err != nil {
		return fmt.Errorf("session: %w", err)
	}
	if k != wire.Challenge || len(challenge) != wire.ChallengeSize {
		return fmt.Errorf("%w: no challenge", wire.ErrFrame)
	}
	proof := keys.Open(pair, challenge)
	if _, err := s.Write(wire.AppendFrame(nil, wire.Proof, proof)); err != nil {
		return fmt.Errorf("session: %w", err)
	}
	k, welcome, err := wire.ReadFrame(s, wire.Welcome)
	switch {
	case err != nil:
		return fmt.Errorf("session: %w", err)
	case k == wire.Refused:
		return errNotAdmitted
	case k != wire.Welcome && k != wire.Full:
		return fmt.Errorf("%w: no welcome", wire.ErrFrame)
	case !keys.Welcomed(pair, challenge, proof, welcome):
		return errNotAdmitted
	}
	admitted()
	if k == wire.Full {
		return errFull
	}
	return nil
}

// receive is the answering side of introduce. Admit is called when the other side has proved
// that it belongs to the site, and reports whether there is room for its inventory.
func receive(s stream, keys swarmkey.Keys, self, other peer.ID, admit func() (room bool)) (room bool, err error) {
	_ = s.SetDeadline(time.Now().Add(handshakeTime))
	defer func() { _ = s.SetDeadline(time.Time{}) }()
	pair := swarmkey.Pair{Opener: string(other), Answerer: string(self)}
	challenge := swarmkey.Challenge()
	if _, err := s.Write(wire.AppendFrame(nil, wire.Challenge, challenge)); err != nil {
		return false, fmt.Errorf("session: %w", err)
	}
	k, proof, err := wire.ReadFrame(s, wire.Proof)
	if err != nil {
		return false, fmt.Errorf("session: %w", err)
	}
	welcome, ok := keys.Answer(pair, challenge, proof)
	if k != wire.Proof || !ok {
		_, _ = s.Write(wire.AppendFrame(nil, wire.Refused, nil))
		return false, errNotAdmitted
	}
	kind := wire.Welcome
	if room = admit(); !room {
		kind = wire.Full
	}
	_, err = s.Write(wire.AppendFrame(nil, kind, welcome))
	return room, err
}
