package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/nixp2p/nixp2p/internal/source"
)

// gate is a writer that waits until it is opened.
type gate struct {
	open chan struct{}
	mu   sync.Mutex
	got  bytes.Buffer
}

func (g *gate) Write(b []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.got.Write(b)
}

// TestLogWriter: nothing waits for a reader of the log that does not read, and what was lost is
// counted.
func TestLogWriter(t *testing.T) {
	t.Parallel()
	var board source.Conditions
	g := &gate{open: make(chan struct{})}
	w := newLogWriter(g, &board)
	for i := range maxLogLines + 100 {
		fmt.Fprintf(w, "line %d\n", i)
	}
	if list := board.List(); len(list) != 1 || list[0].Part != source.PartProcess {
		t.Errorf("%v", list)
	}
	close(g.open)
	eventually(t, func() bool { return len(board.List()) == 0 })
	w.close()
	fmt.Fprintln(w, "the end")
	g.mu.Lock()
	defer g.mu.Unlock()
	text := g.got.String()
	if !strings.HasPrefix(text, "line 0\n") || !strings.Contains(text, "lines of the log were lost") || !strings.HasSuffix(text, "the end\n") {
		t.Errorf("%.100s … %s", text, text[len(text)-100:])
	}
}

// TestLogReaderGone: a pipe whose reader is gone is an error of the log alone.
func TestLogReaderGone(t *testing.T) {
	t.Parallel()
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	defer pipe.Close()
	var board source.Conditions
	w := newLogWriter(pipe, &board)
	defer w.close()
	fmt.Fprintln(w, "to nobody")
	eventually(t, func() bool { return len(board.List()) == 1 })
}
