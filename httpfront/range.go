package httpfront

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// parseRange reads the Range header of a request for one range (RFC 9110, 14.2): from and to
// are the first and last byte, to is -1 when open, from is -n for the last n bytes. Anything
// else, also several ranges, counts as not asked: the whole is a correct answer then. So does
// a Range under a condition, since it holds for no validator: none is ever sent.
func parseRange(r *http.Request) (from, to int64, asked bool) {
	values := r.Header["Range"]
	if len(values) != 1 || r.Method != http.MethodGet || r.Header["If-Range"] != nil {
		return 0, 0, false
	}
	spec, ok := strings.CutPrefix(values[0], "bytes=")
	if !ok {
		return 0, 0, false
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return 0, 0, false
	}
	if first == "" {
		n, err := parseDigits(last)
		return -n, -1, err == nil && n > 0
	}
	from, err := parseDigits(first)
	if err != nil {
		return 0, 0, false
	}
	if last == "" {
		return from, -1, true
	}
	to, err = parseDigits(last)
	return from, to, err == nil && to >= from
}

// parseDigits is ParseInt without signs.
func parseDigits(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err
}

// clamp turns a range into the first byte and the number of bytes; not ok when it begins
// behind the end.
func clamp(from, to, size int64) (start, count int64, ok bool) {
	if from < 0 {
		start = max(size+from, 0)
		return start, size - start, true
	}
	if from >= size {
		return 0, 0, false
	}
	if to < 0 || to >= size {
		to = size - 1
	}
	return from, to - from + 1, true
}

func contentRange(start, count, size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", start, start+count-1, size)
}
