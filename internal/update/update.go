// Package update sends and receives NARs as what differs from an older version of them that the
// receiver has in its store, the base. The receiver proposes up to MaxBases of them by NarHash
// ([Bases.Propose]); the sender chooses one that it has, too ([Encoder.Open]). Peers and HTTP mirrors
// differ only in how the hashes and the bytes travel.
//
// A base is a path that a share key signed, on both sides: to the other one, a private path is like one
// that does not exist. Nothing that was received is proven before the hash of the whole NAR is.
package update

import (
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/nix"
)

const (
	// MaxBases is how many bases are proposed at most.
	MaxBases = 3
	// MaxRate is the rate of a link, in bytes a second, from which a NAR arrives sooner without a delta:
	// 200 Mbit/s.
	MaxRate = 200e6 / 8
	// Least is the size of a NAR in bytes from which a delta pays: below it the time for one round trip
	// counts, not that for the bytes.
	Least = 64 << 10
)

// Coding is the content coding of a delta (Content-Encoding). Only nodes accept it.
const Coding = delta.Coding

// Headers of HTTP.
const (
	// DictionaryHeader names bases in a request for a raw NAR, the preferred one first: NarHashes as
	// byte sequences of RFC 8941. One of them is what RFC 9842 has, whose dictionaries are named by
	// SHA-256, too.
	DictionaryHeader = "Available-Dictionary"
	// OfferHeader, with the value "1" in an answer to /nix-cache-info, says that deltas are sent.
	OfferHeader = "Nixp2p-Delta"
	// BaseHeader names the base in an answer that is a delta, in nix32.
	BaseHeader = "Nixp2p-Base"
	// RateHeader says with bases at how many bytes a second NARs come to the client, so that the mirror knows what
	// work arrives sooner than the NAR without a delta.
	RateHeader = "Nixp2p-Rate"
)

// SetRate notes the rate of a link in bytes a second in a request that names bases.
func SetRate(h http.Header, rate float64) {
	if rate >= 1 {
		h.Set(RateHeader, strconv.FormatInt(int64(rate), 10))
	}
}

// PlainTime returns about how long the client would get size bytes without a delta, 0 if it does not say.
func PlainTime(h http.Header, size int64) time.Duration {
	rate, err := strconv.ParseInt(h.Get(RateHeader), 10, 64)
	if err != nil || rate <= 0 {
		return 0
	}
	return time.Duration(min(float64(size)/float64(rate), time.Hour.Seconds()) * float64(time.Second))
}

// FormatDictionaries returns the value of DictionaryHeader.
func FormatDictionaries(bases []nix.NarHash) string {
	words := make([]string, 0, len(bases))
	for _, b := range bases {
		words = append(words, ":"+base64.StdEncoding.EncodeToString(b[:])+":")
	}
	return strings.Join(words, ", ")
}

// ParseDictionaries reads values of DictionaryHeader. What is no NarHash, and what is too much, is left out:
// a base is an offer that need not be taken.
func ParseDictionaries(values []string) (bases []nix.NarHash) {
	const width = 2 + 44 // bytes of a SHA-256 in base64 between colons
	for _, value := range values {
		for word := range strings.SplitSeq(value, ",") {
			word = strings.Trim(word, " \t")
			if len(word) != width || word[0] != ':' || word[width-1] != ':' {
				continue
			}
			b, err := base64.StdEncoding.Strict().DecodeString(word[1 : width-1])
			if err != nil || len(b) != len(nix.NarHash{}) {
				continue
			}
			if bases = append(bases, nix.NarHash(b)); len(bases) == MaxBases {
				return bases
			}
		}
	}
	return bases
}
