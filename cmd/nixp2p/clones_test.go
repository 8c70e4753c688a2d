package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// insideNetwork is set in a test that has started itself in a network of its own.
const insideNetwork = "NIXP2P_TEST_INSIDE"

// ownNetwork runs the test again in a network of its own, and reports whether this is that one.
func ownNetwork(t *testing.T) bool {
	if os.Getenv(insideNetwork) != "" {
		return true
	}
	if err := exec.Command("unshare", "-n", "true").Run(); err != nil {
		t.Skipf("skipped: a network of one's own takes root and unshare: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "-n", "sh", "-c", `ip link set lo up && exec "$0" -test.run "^`+t.Name()+`$" -test.v`, os.Args[0])
	cmd.Env = append(os.Environ(), insideNetwork+"=1")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
	return false
}

// runTool runs a program of the system.
func runTool(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}

// machine adds the k-th machine to a link, that has a network of its own and ends with the test, and returns how
// programs are run there.
func machine(t *testing.T, link string, k int) (prefix []string) {
	t.Helper()
	holder := exec.Command("unshare", "-n", "--", "sh", "-c", "echo; exec sleep infinity")
	said, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Signal(syscall.SIGKILL); _ = holder.Wait() })
	if _, err := said.Read(make([]byte, 1)); err != nil { // it is in its network
		t.Fatal(err)
	}
	pid := fmt.Sprint(holder.Process.Pid)
	prefix = []string{"nsenter", "-t", pid, "-n", "--"}
	port := fmt.Sprint("p", k)
	runTool(t, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", pid)
	runTool(t, "ip", "link", "set", port, "master", link, "up")
	for _, args := range []string{"link set lo up", "link set eth0 up", fmt.Sprintf("address add 10.9.0.%d/24 dev eth0", k)} {
		runTool(t, append(append(prefix, "ip"), strings.Fields(args)...)...)
	}
	return prefix
}

// TestClonesOnLink: machines made from one image with the state in it, that nobody told of each other, find
// each other by multicast; all but one take a new identity, and what one has the others get.
func TestClonesOnLink(t *testing.T) {
	t.Parallel()
	if !ownNetwork(t) {
		return
	}
	runTool(t, "ip", "link", "add", "lan", "type", "bridge", "mcast_snooping", "0")
	runTool(t, "ip", "link", "set", "lan", "up")
	runTool(t, "ip", "address", "add", "10.9.0.254/24", "dev", "lan")
	key := nixtest.NewKey("cache.example.org-1")
	p := nixtest.NewPath("hello", 5000)
	dir := t.TempDir()
	nixtest.WriteCache(t, dir, nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: []nixtest.Key{key}})
	image := startDaemon(t, "--mdns=false", "--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--upstream", "http://127.0.0.1:1")
	image.peerAddr()
	image.stop()
	all := make([]*process, 3)
	for i := range all {
		d := &process{t: t, dir: t.TempDir(), prefix: machine(t, "lan", i+1), url: fmt.Sprintf("http://10.9.0.%d:7654", i+1)}
		d.args = []string{"--store-root", t.TempDir(), "--upstream", "http://127.0.0.1:1", "--trusted-public-key", key.Public(), "--share-key", key.Name}
		if i == 0 {
			d.args = append(d.args, "--upstream", "file://"+dir)
		}
		if err := os.CopyFS(filepath.Join(d.dir, "state"), os.DirFS(filepath.Join(image.dir, "state"))); err != nil {
			t.Fatal(err)
		}
		d.start()
		t.Cleanup(d.stop)
		all[i] = d
	}
	if err := all[0].fetch(p); err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		d.awaitInfo(p.StorePath.String())
		if err := d.fetch(p); err != nil {
			t.Error(err)
		}
	}
	within(t, 2*time.Minute, func() bool {
		said := 0
		for _, d := range all {
			said += min(1, strings.Count(d.logText(), "state was cloned"))
		}
		return said >= len(all)-1
	})
}
