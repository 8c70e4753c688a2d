package ledger

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// Failure is something that went wrong.
type Failure struct {
	At        time.Time // when last
	Times     int       // how often in a row
	What      string    // one short sentence
	Source    string    // store, cache, peer, upstream
	StorePath string    // "" when it is not about one
	Err       string
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

// Note keeps a failure. The same one in a row is kept once, with its last error.
func (f *Failures) Note(source, what, storePath string, err error) {
	n := Failure{At: time.Now().Round(0), Times: 1, What: what, Source: source, StorePath: storePath}
	if err != nil {
		n.Err = strings.ToValidUTF8(err.Error(), "�")
		if len(n.Err) > maxErr {
			n.Err = strings.ToValidUTF8(n.Err[:maxErr], "") + "…"
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := len(f.list) - 1; k >= 0 {
		if last := f.list[k]; last.What == what && last.Source == source && last.StorePath == storePath {
			n.Times = last.Times + 1
			f.list[k] = n
			return
		}
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
