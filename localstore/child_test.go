package localstore

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/verify"
)

// childEnv makes the test binary a reader of the store that it names: it looks once for each line
// that it gets, and says what it found.
const (
	childEnv = "LOCALSTORE_TEST_CHILD"
	keyEnv   = "LOCALSTORE_TEST_KEY" // whom the reader trusts, if not the fixtures' key
)

func child() int {
	if os.Getenv(collectEnv) != "" {
		return collect()
	}
	keys, err := verify.ParseKeys([]string{cmp.Or(os.Getenv(keyEnv), shareKey.Public())})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	s, err := Open(Config{Root: os.Getenv(childEnv), Keys: keys, ShareKeys: keys.Names()})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	w := &watcher{s: s}
	w.again = w.again.AddDate(9999, 0, 0)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		w.look(context.Background())
		var names []string
		for x := range s.Shares() {
			info, err := s.Info(context.Background(), x.Store)
			switch {
			case err == nil:
				names = append(names, info.StorePath().Name())
			case !errors.Is(err, fs.ErrNotExist):
				names = append(names, err.Error())
			}
		}
		// What was not noticed yet must be found all the same.
		if h, err := nix.ParseStoreHash(in.Text()); err == nil {
			if info, err := s.Info(context.Background(), h); err == nil && !slices.Contains(names, info.StorePath().Name()) {
				names = append(names, "unnoticed "+info.StorePath().Name())
			}
		}
		slices.Sort(names)
		fmt.Println(s.Census().Mode + ": " + strings.Join(names, " "))
	}
	if err := s.Close(); err != nil {
		fmt.Println(err)
	}
	return 0
}

// reader is a store in a process of its own.
type reader struct {
	t    testing.TB
	cmd  *exec.Cmd
	in   *os.File
	out  *bufio.Scanner
	done bool
}

// read starts a reader of w as the given user, who trusts shareKey unless told otherwise.
func (w *world) read(uid uint32, key ...string) *reader {
	w.t.Helper()
	if uid != uint32(os.Getuid()) && os.Getuid() != 0 {
		w.t.Skip("only root can become somebody else")
	}
	exe, err := os.Executable()
	must(w.t, err)
	r := &reader{t: w.t, cmd: exec.Command(exe)}
	if uid != uint32(os.Getuid()) {
		// The directories above are the user's who runs the tests alone.
		for dir := w.root; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			must(w.t, os.Chmod(dir, 0o755))
		}
		b, err := os.ReadFile(exe)
		must(w.t, err)
		exe = filepath.Join(w.root, "reader") // the test binary lies where others may not go
		must(w.t, os.WriteFile(exe, b, 0o755))
		r.cmd = exec.Command(exe)
		r.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	r.cmd.Env = []string{childEnv + "=" + w.root, "TMPDIR=/tmp", keyEnv + "=" + strings.Join(key, "")}
	r.cmd.Stderr = os.Stderr
	r.cmd.Dir = "/"
	stdin, in, err := os.Pipe()
	must(w.t, err)
	out, stdout, err := os.Pipe()
	must(w.t, err)
	r.cmd.Stdin, r.cmd.Stdout = stdin, stdout
	must(w.t, r.cmd.Start())
	must(w.t, stdin.Close())
	must(w.t, stdout.Close())
	r.in, r.out = in, bufio.NewScanner(out)
	w.t.Cleanup(func() {
		r.stop()
		_ = out.Close()
	})
	return r
}

// look has the reader look and returns what it says: "mode: names".
func (r *reader) look(ask ...nixtest.Path) string {
	r.t.Helper()
	line := "\n"
	if len(ask) > 0 {
		line = ask[0].Hash().String() + "\n"
	}
	_, err := r.in.WriteString(line)
	must(r.t, err)
	if !r.out.Scan() {
		r.t.Fatalf("the reader has gone: %v", r.out.Err())
	}
	return r.out.Text()
}

func (r *reader) stop() {
	if r.done {
		return
	}
	r.done = true
	_ = r.in.Close()
	if err := r.cmd.Wait(); err != nil {
		r.t.Errorf("reader: %v", err)
	}
}
