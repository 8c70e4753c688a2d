package infocache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

func sum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func le32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

const (
	childDir   = "NIXP2P_TEST_INFOCACHE_DIR"
	killRounds = "NIXP2P_TEST_KILLS" // default 20
)

// TestKilledChild is the process that TestKill9 kills: it puts and forgets until then.
func TestKilledChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("run by TestKill9")
	}
	c := open(t, Config{Dir: dir, MaxBytes: 8 * minSegment})
	fmt.Println("up")
	for {
		i := info(t, fmt.Sprint(rand.IntN(500)))
		if rand.IntN(10) == 0 {
			c.Forget(hash(i))
		} else {
			c.Put(i)
		}
		if rand.IntN(20) == 0 {
			c.flush()
		}
	}
}

// TestKill9 kills a writing process at random moments. The memory opens each time, and what it
// has is right.
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
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(rand.N(20 * time.Millisecond)):
		}
		_ = child.Process.Kill()
		_ = child.Wait()

		c := open(t, Config{Dir: dir, MaxBytes: 8 * minSegment})
		if n := du(t, dir); n > 8*minSegment {
			t.Errorf("%d bytes on disk", n)
		}
		for h := range c.index {
			if _, err := c.Info(t.Context(), h); err == nil {
				found++
			} else if !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		}
		_ = c.Close()
	}
	if found == 0 {
		t.Error("nothing was ever remembered")
	}
}
