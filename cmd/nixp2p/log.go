package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// newLog returns the daemon's log, written to w, whose bytes arrive at end. In systemd's journal,
// which has a time stamp and a priority of its own for each line, a line begins with its priority
// and a text line has no time.
func newLog(w, end io.Writer, format string, level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	var lines *journalWriter
	if f, ok := end.(*os.File); ok && isJournal(f, os.Getenv("JOURNAL_STREAM")) {
		lines = &journalWriter{w: w}
		w = lines
	}
	var h slog.Handler
	if format == "json" {
		h = slog.NewJSONHandler(w, opts)
	} else {
		if lines != nil {
			opts.ReplaceAttr = withoutTime
		}
		h = slog.NewTextHandler(w, opts)
	}
	if lines != nil {
		h = &journalHandler{h, lines}
	}
	return slog.New(h)
}

// withoutTime leaves out the time of a line.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// isJournal reports whether f is the stream that $JOURNAL_STREAM names: systemd sets the variable,
// and it stays set where the output goes elsewhere.
func isJournal(f *os.File, stream string) bool {
	var st unix.Stat_t
	if stream == "" || unix.Fstat(int(f.Fd()), &st) != nil {
		return false
	}
	return stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// journalHandler has each line written with its priority.
type journalHandler struct {
	slog.Handler
	lines *journalWriter
}

func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.lines.mu.Lock()
	defer h.lines.mu.Unlock()
	h.lines.priority = priority(r.Level)
	return h.Handler.Handle(ctx, r)
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journalHandler{h.Handler.WithAttrs(attrs), h.lines}
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	return &journalHandler{h.Handler.WithGroup(name), h.lines}
}

// journalWriter puts the priority of sd-daemon(3) before a line. Handlers write a line at once.
type journalWriter struct {
	w        io.Writer
	mu       sync.Mutex // held by journalHandler from the priority to the end of the line
	priority int
}

func (j *journalWriter) Write(line []byte) (int, error) {
	if _, err := j.w.Write(fmt.Appendf(nil, "<%d>%s", j.priority, line)); err != nil {
		return 0, err
	}
	return len(line), nil
}

// priority is that of syslog(3): 3 error, 4 warning, 6 info, 7 debug.
func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}
