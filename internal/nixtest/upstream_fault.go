package nixtest

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Action is what goes wrong in a body.
type Action int

// The actions. At counts bytes of the response, for Flip bytes of the file.
const (
	Nothing  Action = iota
	Hang            // no byte more from At on, until the client or the server goes
	Cut             // the connection ends at At as if the server had died
	Reset           // the same with RST
	QuietEnd        // the body ends at At, without Content-Length, and looks whole
	Flip            // byte At is wrong
	Extra           // At bytes too many follow
)

// BeforeHeaders as At lets Hang, Cut and Reset happen before a byte was sent.
const BeforeHeaders = -1

// Fault is how a cache misbehaves. The zero value is no fault; fields combine.
type Fault struct {
	Times int                        // so many requests meet it, 0 is all
	Only  func(r *http.Request) bool // these requests meet it, nil is all

	Status     int           // instead of the answer, with a short body
	RetryAfter string        // header
	Delay      time.Duration // before the headers
	Do         Action
	At         int64
	Redirect   string            // 302 with this Location
	Header     map[string]string // added to the response
	Body       []byte            // instead of the file
	Length     int64             // Content-Length that is not true; more than the body cuts it
	Chunked    bool              // no Content-Length
	NoRange    bool              // Range is ignored
	WrongRange bool              // 206 that begins at 0 whatever was asked
	Rate       int               // bytes/s of the body

	left int
}

// Set makes all requests of a kind meet the faults, the first that fits; none heals it.
func (u *Upstream) Set(k Kind, faults ...Fault) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.faults[k] = nil
	for _, f := range faults {
		f.left = f.Times
		u.faults[k] = append(u.faults[k], &f)
	}
}

// SetAll is Set for every kind.
func (u *Upstream) SetAll(faults ...Fault) {
	for k := range kinds {
		u.Set(k, faults...)
	}
}

// answer is one response on its way.
type answer struct {
	u     *Upstream
	kind  Kind
	fault Fault
	gone  <-chan struct{}
	w     http.ResponseWriter
	r     *http.Request
	file  []byte
	found bool
}

func (a *answer) send() {
	f := &a.fault
	if f.Delay > 0 && !a.sleep(f.Delay) {
		return
	}
	if f.At == BeforeHeaders && a.act() {
		return
	}
	for k, v := range f.Header {
		a.w.Header().Set(k, v)
	}
	if f.RetryAfter != "" {
		a.w.Header().Set("Retry-After", f.RetryAfter)
	}
	switch {
	case f.Redirect != "":
		a.w.Header().Set("Location", f.Redirect)
		a.w.WriteHeader(http.StatusFound)
		return
	case f.Status != 0:
		a.body(f.Status, []byte(http.StatusText(f.Status)+"\n"))
		return
	case f.Body != nil:
		a.file, a.found = f.Body, true
	}
	switch {
	case !a.found:
		a.body(http.StatusNotFound, []byte("404\n"))
		return
	case a.r.Method != http.MethodGet && a.r.Method != http.MethodHead:
		a.body(http.StatusMethodNotAllowed, nil)
		return
	}
	switch {
	case f.Do == Flip && f.At < int64(len(a.file)):
		a.file = bytes.Clone(a.file)
		a.file[f.At] ^= 0x40
	case f.Do == Extra:
		a.file = slices.Concat(a.file, make([]byte, f.At))
	}
	a.ranged()
}

// ranged answers with the part of the file that was asked for.
func (a *answer) ranged() {
	size := int64(len(a.file))
	from, to, ok := parseRange(a.r.Header.Get("Range"), size)
	if a.kind != NarFile || a.u.cfg.NoRange || a.fault.NoRange {
		a.body(http.StatusOK, a.file)
		return
	}
	a.w.Header().Set("Accept-Ranges", "bytes")
	switch {
	case !ok:
		a.body(http.StatusOK, a.file)
	case from >= size:
		a.w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		a.body(http.StatusRequestedRangeNotSatisfiable, nil)
	default:
		if a.fault.WrongRange {
			from = 0
		}
		a.w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, size))
		a.body(http.StatusPartialContent, a.file[from:to])
	}
}

// parseRange reads "bytes=from-" and "bytes=from-last".
func parseRange(s string, size int64) (from, to int64, ok bool) {
	var last int64
	if n, _ := fmt.Sscanf(s, "bytes=%d-%d", &from, &last); n == 2 {
		return from, min(last+1, size), true
	}
	n, _ := fmt.Sscanf(s, "bytes=%d-", &from)
	return from, size, n == 1
}

// body sends status and body up to where the fault is.
func (a *answer) body(status int, body []byte) {
	f := &a.fault
	length := int64(len(body))
	if f.Length > 0 {
		length = f.Length
	}
	if !f.Chunked && f.Do != QuietEnd {
		a.w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	}
	a.w.WriteHeader(status)
	if a.r.Method == http.MethodHead {
		return
	}
	cut := f.At >= 0 && f.At <= int64(len(body)) && (f.Do == Hang || f.Do == Cut || f.Do == Reset || f.Do == QuietEnd)
	if cut {
		body = body[:f.At]
	}
	if f.Chunked || f.Do == QuietEnd || cut {
		a.flush()
	}
	if !a.write(body) {
		return
	}
	switch {
	case cut:
		a.flush()
		a.act()
	case int64(len(body)) < length:
		a.flush()
		panic(http.ErrAbortHandler)
	}
}

func (a *answer) write(body []byte) bool {
	const piece = 64 << 10
	step := piece
	if a.fault.Rate > 0 {
		step = max(a.fault.Rate/100, 1)
	}
	for len(body) > 0 {
		// Counted before a reader can have it.
		piece := body[:min(step, len(body))]
		a.u.bytes[a.kind].Add(int64(len(piece)))
		n, err := a.w.Write(piece)
		a.u.bytes[a.kind].Add(int64(n - len(piece)))
		if err != nil {
			return false
		}
		body = body[n:]
		if a.fault.Rate > 0 {
			a.flush()
			if !a.sleep(time.Second / 100) {
				return false
			}
		}
	}
	return true
}

func (a *answer) flush() { _ = http.NewResponseController(a.w).Flush() }

func (a *answer) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-a.r.Context().Done():
	case <-a.gone:
	}
	return false
}

// act does what the fault says at this point; false when that is nothing.
func (a *answer) act() bool {
	switch a.fault.Do {
	case Hang:
		select {
		case <-a.r.Context().Done():
		case <-a.gone:
		}
		panic(http.ErrAbortHandler)
	case Cut:
		panic(http.ErrAbortHandler)
	case Reset:
		a.reset()
	case QuietEnd:
	default:
		return false
	}
	return true
}

// reset closes the connection with RST; over HTTP/2 it resets the stream.
func (a *answer) reset() {
	conn, _, err := http.NewResponseController(a.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	raw := conn
	if c, ok := conn.(*tls.Conn); ok {
		raw = c.NetConn()
	}
	if c, ok := raw.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	_ = raw.Close()
}
