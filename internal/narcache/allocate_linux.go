package narcache

import (
	"errors"
	"os"
	"syscall"
)

const (
	keepSize = 1 // FALLOC_FL_KEEP_SIZE: fallocate(2)
	// allocateFrom is the size from which it is worth a system call.
	allocateFrom = 64 << 10
)

// allocate takes the blocks of a file in advance. A full disk is noticed before the first byte
// is passed on, the file lies in one piece, and the file system sets no more aside for it than
// it needs. File systems that cannot do it are no error.
func allocate(f *os.File, size int64) error {
	if size < allocateFrom {
		return nil
	}
	for {
		err := syscall.Fallocate(int(f.Fd()), keepSize, 0, size)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EIO):
			return os.NewSyscallError("fallocate", err)
		default:
			return nil
		}
	}
}
