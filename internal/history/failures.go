package history

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/source"
)

// Failure is something that went wrong.
type Failure struct {
	source.Event
	At    time.Time // of the last time
	Times int       // in a row
	Err   string    // of the last time
}

// What says what happened, in a short sentence for people.
func (f *Failure) What() string { return sentences[f.Kind] }

var sentences = map[source.EventKind]string{
	source.WrongBytes:     "sent a NAR whose hash is wrong",
	source.WrongInfo:      "sent a narinfo that is not valid",
	source.Mixture:        "bytes of several sources together were wrong",
	source.EndedEarly:     "stopped in the middle; another source went on",
	source.ProtocolError:  "broke the protocol",
	source.CacheDown:      "cannot be reached",
	source.CacheFailed:    "the disk of the NAR cache failed; NARs are passed through and not kept",
	source.WrongFile:      "a file does not hold the signed NAR and was removed",
	source.CacheRecovered: "can be reached again",
}

// Failures has the last ones, in memory. The zero value is ready; it is safe for concurrent use.
type Failures struct {
	mu   sync.Mutex
	list []Failure // the newest last
}

const (
	maxFailures = 32
	// maxErr bounds what is kept of an error: others may have written its text.
	maxErr = 400
)

// Note keeps an event; it is a source.Events. The same one in a row is kept once, with its last
// error.
func (f *Failures) Note(e source.Event) {
	n := Failure{Event: e, At: time.Now().Round(0), Times: 1}
	if e.Err != nil {
		n.Err = strings.ToValidUTF8(e.Err.Error(), "�")
		if len(n.Err) > maxErr {
			n.Err = strings.ToValidUTF8(n.Err[:maxErr], "") + "…"
		}
	}
	n.Event.Err = nil // it may hold on to much
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := len(f.list) - 1; k >= 0 && f.list[k].Event == n.Event {
		n.Times = f.list[k].Times + 1
		f.list[k] = n
		return
	}
	if len(f.list) == maxFailures {
		f.list = slices.Delete(f.list, 0, 1)
	}
	f.list = append(f.list, n)
}

// Last returns the failures, the newest first.
func (f *Failures) Last() []Failure {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := slices.Clone(f.list)
	slices.Reverse(list)
	return list
}
