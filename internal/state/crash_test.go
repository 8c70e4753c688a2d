package state

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
)

const (
	childDir   = "NIXP2P_TEST_STATE_DIR"
	killRounds = "NIXP2P_TEST_KILLS" // default 20
)

// TestKilledChild is the process that TestKill9 kills: it puts and forgets until then.
func TestKilledChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("run by TestKill9")
	}
	m := open(t, dir)
	m.maxEntries = 300
	history := m.History()
	for n := 0; ; n++ {
		fmt.Print(".")
		i := info(t, fmt.Sprint(rand.IntN(500)))
		if rand.IntN(10) == 0 {
			m.Forget(hash(i))
		} else {
			m.Put(i)
		}
		if rand.IntN(20) == 0 {
			history.Save(fmt.Appendf(nil, "%d", n))
			m.flush()
		}
	}
}

// TestKill9 kills a writing process at random moments. The database opens each time without a
// warning, and what it has is right.
func TestKill9(t *testing.T) {
	rounds := 20
	if n, err := strconv.Atoi(os.Getenv(killRounds)); err == nil {
		rounds = n
	}
	dir := t.TempDir()
	found := 0
	for range rounds {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledChild$")
		child.Env = append(os.Environ(), childDir+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, out, 1+rand.Int64N(300)); err != nil {
			t.Fatal(err)
		}
		_ = child.Process.Kill()
		_ = child.Wait()

		m := open(t, dir)
		n := m.count(t)
		got := 0
		for range m.Each(t.Context(), func(nix.StoreHash, nix.NarHash) bool { return true }) {
			got++
		}
		if got != n || m.warnings() > 0 {
			t.Errorf("%d of %d can be read, log: %s", got, n, m.log)
		}
		if h := m.History().Load(); h != nil {
			if _, err := strconv.Atoi(string(h)); err != nil {
				t.Error(err)
			}
		}
		found += got
		_ = m.Close()
	}
	if found == 0 {
		t.Error("nothing was ever remembered")
	}
}
