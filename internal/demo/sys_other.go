//go:build !linux

package demo

import "syscall"

// apart gives a child a process group of its own, so that Ctrl-C in the terminal is for this
// process alone, which ends its children in order.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
