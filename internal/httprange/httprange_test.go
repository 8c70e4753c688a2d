package httprange

import (
	"errors"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		header       string
		from, length int64
		err          error
	}{
		{"", 0, 10, nil},
		{"bytes=0-", 0, 10, nil},
		{"bytes=3-5", 3, 3, nil},
		{"bytes=3-99", 3, 7, nil},
		{"bytes=-4", 6, 4, nil},
		{"bytes=-99", 0, 10, nil},
		{"bytes=9-", 9, 1, nil},
		{"bytes=10-", 0, 0, ErrUnsatisfiable},
		{"bytes=-0", 0, 0, ErrUnsatisfiable},
		{"bytes=5-3", 0, 0, ErrMalformed},
		{"bytes=1-2,4-5", 0, 0, ErrMalformed},
		{"bytes=+1-2", 0, 0, ErrMalformed},
		{"bytes=", 0, 0, ErrMalformed},
		{"bytes=-", 0, 0, ErrMalformed},
		{"items=0-1", 0, 0, ErrMalformed},
		{"bytes=99999999999999999999-", 0, 0, ErrMalformed},
	} {
		from, length, err := Parse(c.header, 10)
		if !errors.Is(err, c.err) || err == nil && (from != c.from || length != c.length) {
			t.Errorf("%q: %d, %d, %v", c.header, from, length, err)
		}
	}
}

// FuzzParse: a range lies within the body, and what is written is read again.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "bytes=0-", "bytes=3-5", "bytes=-4", "bytes=1-2,4-5", "bytes=9-3"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		from, length, err := Parse(header, size)
		if err != nil {
			return
		}
		if from < 0 || length < 0 || from+length > size || header != "" && length == 0 {
			t.Fatalf("%d bytes from %d of %d", length, from, size)
		}
		if at, err := ParseFrom(From(from)); err != nil || at != from {
			t.Fatalf("%q: %d, %v", From(from), at, err)
		}
		if length == 0 {
			return
		}
		f2, l2, s2, err := ParseContentRange(ContentRange(from, length, size))
		if err != nil || f2 != from || l2 != length || s2 != size {
			t.Fatalf("%q: %d, %d, %d, %v", ContentRange(from, length, size), f2, l2, s2, err)
		}
	})
}
