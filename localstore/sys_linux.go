package localstore

import "golang.org/x/sys/unix"

// openPath only names a file or directory: it needs no right to read and holds the path all
// the same, for the garbage collector looks at every descriptor.
const openPath = unix.O_PATH

// adviseSequential asks the kernel to read further ahead.
func adviseSequential(fd int) {
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_SEQUENTIAL) // advice: nothing depends on it
}
