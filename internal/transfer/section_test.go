package transfer

import (
	"bytes"
	"errors"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nixtest"
)

func TestSection(t *testing.T) {
	stream := nixtest.NewPath("stream", 300_000).Contents
	size := int64(len(stream))
	write := func(s *section, b []byte, step int) error {
		for len(b) > 0 {
			n := min(step, len(b))
			if k, err := s.Write(b[:n]); err != nil {
				return err
			} else if k != n {
				t.Fatalf("took %d of %d", k, n)
			}
			b = b[n:]
		}
		return nil
	}
	for _, c := range []struct{ from, count int64 }{
		{0, size}, {0, 0}, {0, 1}, {5, 10}, {100_000, 100_000}, {size - 1, 1}, {0, size - 1}, {1, size - 1}, {size, 0},
	} {
		for _, step := range []int{1000, 7919, 300_000} {
			for _, rewindAt := range []int64{-1, 0, 1, 100_001, size} {
				var out bytes.Buffer
				s := newSection(&out, c.from, c.count, size)
				if rewindAt >= 0 {
					if err := write(s, stream[:rewindAt], step); err != nil {
						t.Fatal(err)
					}
					s.rewind()
				}
				// A second rewind amid the replay.
				if rewindAt > 1 {
					if err := write(s, stream[:rewindAt/2], step+1); err != nil {
						t.Fatal(err)
					}
					s.rewind()
				}
				want := stream[c.from : c.from+c.count]
				if err := write(s, stream[:size-1], step); err != nil {
					t.Fatal(err)
				}
				if c.count > 0 && int64(out.Len()) >= c.count && rewindAt != size {
					t.Errorf("%v: all of it left before the end of the stream", c)
				}
				err := errors.Join(write(s, stream[size-1:], step), s.finish())
				if err != nil || !bytes.Equal(out.Bytes(), want) {
					t.Errorf("%v in steps of %d, rewound at %d: %d bytes, error %v", c, step, rewindAt, out.Len(), err)
				}
			}
		}
	}
}

func TestSectionDiverges(t *testing.T) {
	stream := nixtest.NewPath("stream", 1000).Contents
	for _, at := range []int{0, 499} {
		var out bytes.Buffer
		s := newSection(&out, 0, 1000, 1000)
		_, _ = s.Write(stream[:500])
		s.rewind()
		other := bytes.Clone(stream)
		other[at] ^= 1
		if _, err := s.Write(other); !errors.Is(err, errDiverged) || out.Len() != 500 {
			t.Errorf("byte %d: %d bytes, error %v", at, out.Len(), err)
		}
	}
}

// TestSectionSure: what was not summed is never gone on with after something has left.
func TestSectionSure(t *testing.T) {
	stream := nixtest.NewPath("stream", 1000).Contents
	for _, sent := range []int{0, 500} {
		var out bytes.Buffer
		s := newSection(&out, 400, 600, 1000)
		s.sure = true
		_, _ = s.Write(stream[:400+sent])
		s.rewind()
		s.sure = false
		_, err := s.Write(stream)
		if sent > 0 && (!errors.Is(err, errDiverged) || out.Len() != sent) {
			t.Errorf("%d bytes had left: %d bytes, error %v", sent, out.Len(), err)
		}
		if sent == 0 && (err != nil || s.finish() != nil || !bytes.Equal(out.Bytes(), stream[400:])) {
			t.Errorf("nothing had left: %d bytes, error %v", out.Len(), err)
		}
	}
}

func TestSectionShort(t *testing.T) {
	for _, c := range []struct{ from, count int64 }{{0, 1000}, {10, 20}} {
		var out bytes.Buffer
		s := newSection(&out, c.from, c.count, 1000)
		_, _ = s.Write(make([]byte, 15))
		if err := s.finish(); !errors.Is(err, errShort) {
			t.Errorf("%v: %v", c, err)
		}
	}
}
