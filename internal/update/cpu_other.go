//go:build !linux

package update

import "time"

var began = time.Now()

// threadTime returns the time since the start, which is more than this thread has used.
func threadTime() time.Duration { return time.Since(began) }
