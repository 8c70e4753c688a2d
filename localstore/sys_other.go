//go:build !linux

package localstore

import "golang.org/x/sys/unix"

// openPath opens for reading where a file cannot be opened in name only.
const openPath = unix.O_RDONLY

func adviseSequential(int) {}
