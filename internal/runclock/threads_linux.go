package runclock

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// threads returns the usage of all threads, of Linux's /proc/PID/task/TID/schedstat (see
// Documentation/scheduler/sched-stats.rst there): ns on a core, ns waiting for one, turns.
func threads() (u usage) {
	const dir = "/proc/self/task"
	tasks, _ := os.ReadDir(dir)
	for _, t := range tasks {
		text, _ := os.ReadFile(dir + "/" + t.Name() + "/schedstat")
		if fields := strings.Fields(string(text)); len(fields) >= 2 {
			ran, _ := strconv.ParseInt(fields[0], 10, 64)
			waited, _ := strconv.ParseInt(fields[1], 10, 64)
			u.ran += time.Duration(ran)
			u.waited += time.Duration(waited)
		}
	}
	return u
}
