package update

import (
	"io"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// decodeRate is about how many bytes of a NAR a core decodes in a second, by compression.
var decodeRate = map[nix.Compression]int64{nix.XZ: 40e6, nix.Zstd: 500e6}

const (
	// unpackMost bounds how long files are decoded for a delta.
	unpackMost = 8 * time.Second
	// waitMost bounds how long an encoder is waited for.
	waitMost = 5 * time.Second
	// awakeEvery is how often the receiver of a delta hears that there is one: it gives up a sender that says
	// nothing for some seconds.
	awakeEvery = time.Second
)

// unpacking returns about how long decoding a NAR of size bytes takes.
func unpacking(from nix.Compression, size int64) time.Duration {
	if from == nix.None {
		return 0
	}
	rate, ok := decodeRate[from]
	if !ok {
		return unpackMost + 1
	}
	return time.Duration(float64(size) / float64(rate) * float64(time.Second))
}

// pays reports whether a delta for which files are decoded arrives sooner than the NAR without one: decoding may take
// half of that time, since a core is seldom free, and the delta itself takes the rest.
func pays(plain, unpack time.Duration) bool {
	return unpack == 0 || unpack <= min(plain/2, unpackMost)
}

// patience is how long an encoder is waited for.
func patience(plain time.Duration) time.Duration { return min(plain/4, waitMost) }

// skippable is a frame of zstd without contents, which decoders leave out.
var skippable = []byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}

// whileAwake runs f, and tells the receiver of a delta in w meanwhile that it goes on.
func whileAwake(w io.Writer, f func() error) error {
	done := make(chan struct{})
	told := make(chan error, 1)
	go func() {
		tick := time.NewTicker(awakeEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				told <- nil
				return
			case <-tick.C:
			}
			if _, err := w.Write(skippable); err != nil {
				told <- err
				return
			}
		}
	}()
	err := f()
	close(done)
	if lost := <-told; err == nil {
		err = lost
	}
	return err
}
