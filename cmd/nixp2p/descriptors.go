package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/source"
)

// descriptorsEvery is how often it is looked whether there are file descriptors left.
const descriptorsEvery = time.Second

// scarceFor is how long a shortage is shown: the next request may bring it back.
const scarceFor = time.Minute

// watchDescriptors says when the process has no file descriptors left, until ctx ends. Everything
// then waits or fails for reasons that look like those of others.
func (s *server) watchDescriptors(ctx context.Context) {
	tick := time.NewTicker(descriptorsEvery)
	defer tick.Stop()
	for {
		if err := openOne(); errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			var limit syscall.Rlimit
			_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
			s.conditions.ReportFor(s.log, "descriptors", source.Condition{
				Part: source.PartProcess,
				Text: fmt.Sprintf("no file descriptors are left (the limit is %d): requests wait for each other, caches and peers seem unreachable", limit.Cur),
				Hint: "raise it: LimitNOFILE=65536 in the unit, or `ulimit -n 65536` before the start",
			}, scarceFor)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// openOne takes a descriptor for a moment.
func openOne() error {
	f, err := os.Open(os.DevNull)
	if err == nil {
		_ = f.Close()
	}
	return err
}
