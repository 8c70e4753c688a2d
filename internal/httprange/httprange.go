// Package httprange reads and writes the Range and Content-Range headers of RFC 9110 §14,
// for single byte ranges.
package httprange

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Errors of Parse.
var (
	// ErrMalformed: the header is not a byte range, or names several. The whole is served
	// instead, as RFC 9110 §14.2 allows.
	ErrMalformed = errors.New("httprange: not a single byte range")
	// ErrUnsatisfiable: the range begins at or after the end (status 416).
	ErrUnsatisfiable = errors.New("httprange: unsatisfiable range")
)

const unit = "bytes="

// Parse reads a Range header for a body of size bytes and returns the bytes to send: length
// bytes from byte from on. Open ("5-") and suffix ("-5") ranges are resolved; an end beyond
// the size is cut. An empty header is the whole body.
func Parse(header string, size int64) (from, length int64, err error) {
	if header == "" {
		return 0, size, nil
	}
	spec, ok := strings.CutPrefix(header, unit)
	first, last, ok2 := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok || !ok2 || strings.Contains(spec, ",") {
		return 0, 0, ErrMalformed
	}
	if first == "" {
		n, err := parse(last)
		switch {
		case err != nil:
			return 0, 0, err
		case n == 0 || size == 0:
			return 0, 0, ErrUnsatisfiable
		}
		n = min(n, size)
		return size - n, n, nil
	}
	if from, err = parse(first); err != nil {
		return 0, 0, err
	}
	end := size - 1
	if last != "" {
		n, err := parse(last)
		if err != nil || n < from {
			return 0, 0, ErrMalformed
		}
		end = min(end, n)
	}
	if from >= size {
		return 0, 0, ErrUnsatisfiable
	}
	return from, end - from + 1, nil
}

// From returns the Range header for everything from byte from on.
func From(from int64) string { return unit + strconv.FormatInt(from, 10) + "-" }

// ParseFrom reads a header that From wrote: an open range. An empty header is byte 0.
func ParseFrom(header string) (int64, error) {
	if header == "" {
		return 0, nil
	}
	s, ok := strings.CutPrefix(header, unit)
	s, ok2 := strings.CutSuffix(s, "-")
	if !ok || !ok2 {
		return 0, ErrMalformed
	}
	return parse(s)
}

// ContentRange returns the Content-Range header of length bytes from byte from on, of size.
func ContentRange(from, length, size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", from, from+length-1, size)
}

// ParseContentRange reads a Content-Range header whose size is known.
func ParseContentRange(header string) (from, length, size int64, err error) {
	rest, ok := strings.CutPrefix(header, "bytes ")
	span, total, ok2 := strings.Cut(rest, "/")
	first, last, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, ErrMalformed
	}
	var end int64
	if from, err = parse(first); err == nil {
		if end, err = parse(last); err == nil {
			size, err = parse(total)
		}
	}
	if err != nil || from > end || end >= size {
		return 0, 0, 0, ErrMalformed
	}
	return from, end - from + 1, size, nil
}

// parse reads digits alone: no sign, no spaces. Leading zeros are allowed, as in the grammar.
func parse(s string) (int64, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, ErrMalformed
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, ErrMalformed
	}
	return n, nil
}
