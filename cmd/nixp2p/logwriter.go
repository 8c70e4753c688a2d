package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/source"
)

const (
	// maxLogLines is how many lines wait for a reader of the log that does not read.
	maxLogLines = 2048
	// logFlush is how long the end of the process waits for it.
	logFlush = time.Second
)

// logWriter passes lines of the log on without ever waiting: the reader of a pipe may stop to read
// or be gone, and a disk may be full. What finds no place is counted, and said when there is place
// again.
type logWriter struct {
	out        io.Writer
	conditions *source.Conditions
	lines      chan []byte // closed by close
	done       chan struct{}

	mu     sync.Mutex
	lost   int // lines, since the last one that was written
	closed bool
}

// newLogWriter starts to pass lines on to out; close ends that.
func newLogWriter(out io.Writer, conditions *source.Conditions) *logWriter {
	w := &logWriter{out: out, conditions: conditions, lines: make(chan []byte, maxLogLines), done: make(chan struct{})}
	go w.pass()
	return w
}

// Write is part of io.Writer. A line is one call.
func (w *logWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return w.out.Write(line)
	}
	select {
	case w.lines <- append([]byte(nil), line...):
	default:
		w.failed("nobody reads it")
	}
	return len(line), nil
}

// failed counts a line that is lost. The caller holds mu.
func (w *logWriter) failed(why string) {
	w.lost++
	w.conditions.Set("log", source.Condition{
		Part: source.PartProcess, Text: "the log cannot be written: " + why + "; lines of it are lost",
		Hint: "what reads the standard error of nixp2p, or the disk on which it is?",
	})
}

func (w *logWriter) pass() {
	defer close(w.done)
	for line := range w.lines {
		_, err := w.out.Write(line)
		w.mu.Lock()
		if err != nil {
			w.failed(err.Error())
		} else if lost := w.lost; lost > 0 {
			w.lost = 0
			w.conditions.Clear("log")
			_, _ = fmt.Fprintf(w.out, "level=WARN msg=\"lines of the log were lost\" lines=%d\n", lost)
		}
		w.mu.Unlock()
	}
}

// close writes what is waiting, if that is possible soon. Later lines are written at once.
func (w *logWriter) close() {
	w.mu.Lock()
	w.closed = true
	close(w.lines)
	w.mu.Unlock()
	select {
	case <-w.done:
	case <-time.After(logFlush):
	}
}
