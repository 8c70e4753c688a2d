package wire

import (
	"fmt"
	"strings"
)

const (
	// maxPeers bounds lists of addresses, in a frame and in a refusal.
	maxPeers = 16 << 10
	// maxPeerLines and maxPeerLine bound what they are made of.
	maxPeerLines = 128
	maxPeerLine  = 256
)

// MaxPeerList is the most bytes of a list of addresses.
const MaxPeerList = maxPeers

// AppendPeers encodes multiaddrs with peer IDs, a line each, as many as a list may have.
func AppendPeers(b []byte, addrs []string) []byte {
	start, lines := len(b), 0
	for _, a := range addrs {
		if a == "" || len(a) > maxPeerLine || strings.ContainsAny(a, "\n\r") {
			continue
		}
		if lines == maxPeerLines || len(b)-start+len(a)+1 > maxPeers {
			break
		}
		b = append(append(b, a...), '\n')
		lines++
	}
	return b
}

// ParsePeers reads what AppendPeers wrote. Whether a line is an address shows when it is
// used.
func ParsePeers(b []byte) ([]string, error) {
	if len(b) > maxPeers {
		return nil, fmt.Errorf("%w: %d bytes of addresses", ErrFrame, len(b))
	}
	var list []string
	for line := range strings.Lines(string(b)) {
		line, ok := strings.CutSuffix(line, "\n")
		if !ok || line == "" || len(line) > maxPeerLine || strings.Contains(line, "\r") || len(list) == maxPeerLines {
			return nil, fmt.Errorf("%w: addresses", ErrFrame)
		}
		list = append(list, line)
	}
	return list, nil
}
