//go:build !linux

package narcache

import "os"

// allocate does nothing where the system has no fallocate.
func allocate(*os.File, int64) error { return nil }
