package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// In the journal each line has its priority and no second time stamp; JSON keeps its own.
func TestJournal(t *testing.T) {
	for _, tt := range []struct{ name, format, want string }{
		{"text", "text", "<6>level=INFO msg=a\n<4>level=WARN msg=b part.of=it part.x=1\n<3>level=ERROR msg=\"c\\nd\"\n<7>level=DEBUG msg=e\n"},
		{"elsewhere", "text", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := os.CreateTemp(t.TempDir(), "")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			stream := "1:1"
			if tt.want != "" {
				var st unix.Stat_t
				if err := unix.Fstat(int(f.Fd()), &st); err != nil {
					t.Fatal(err)
				}
				stream = fmt.Sprintf("%d:%d", st.Dev, st.Ino)
			}
			t.Setenv("JOURNAL_STREAM", stream)
			log := newLog(io.MultiWriter(f), f, tt.format, slog.LevelDebug)
			log.Info("a")
			log.WithGroup("part").With("of", "it").Warn("b", "x", 1)
			log.Error("c\nd")
			log.Debug("e")
			got, err := os.ReadFile(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				if len(got) < 5 || string(got[:5]) != "time=" {
					t.Errorf("wrote %q, want times and no priorities", got)
				}
			} else if string(got) != tt.want {
				t.Errorf("wrote %q, want %q", got, tt.want)
			}
		})
	}
}
