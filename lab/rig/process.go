//go:build linux

package rig

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a program in a host.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	log  *os.File
}

// StartIn starts a program in a namespace; what it prints goes to a file.
func StartIn(name, logFile string, argv ...string) (*Process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	p := &Process{done: make(chan struct{}), log: log}
	// ip execs the program: the process stays the same.
	p.cmd = exec.Command("ip", append([]string{"netns", "exec", name}, argv...)...)
	p.cmd.Env = Environ()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
		_ = log.Close()
	}()
	return p, nil
}

// Signal sends it a signal.
func (p *Process) Signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

// Running tells whether it has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill ends it and waits for that.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Stop ends the process, with patience.
func (p *Process) Stop(patience time.Duration) {
	p.Signal(syscall.SIGCONT)
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.Kill()
	}
}

// Usage is what a process took of the machine so far.
type Usage struct {
	CPU time.Duration
	RSS int64 // bytes
}

// Usage returns what the process took; one that has ended has no more to say than its CPU.
func (p *Process) Usage() (u Usage, err error) {
	if !p.Running() {
		return Usage{CPU: p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()}, nil
	}
	return usageOf(p.cmd.Process.Pid)
}

func usageOf(pid int) (u Usage, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// The name, in parentheses, may have spaces in it.
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(f) < 22 {
		return u, errors.New("stat: too short")
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	pages, _ := strconv.ParseInt(f[21], 10, 64)
	const ticks = 100 // a second, on every Linux that Go runs on
	return Usage{time.Duration(user+system) * time.Second / ticks, pages * int64(os.Getpagesize())}, nil
}
