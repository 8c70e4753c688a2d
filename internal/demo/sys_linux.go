package demo

import "syscall"

// apart gives a child a process group of its own, so that Ctrl-C in the terminal is for this
// process alone, which ends its children in order; should it be killed, the system ends them.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
