//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/lab/rig"
)

// signer makes signatures as Nix does.
type signer struct {
	name string
	key  ed25519.PrivateKey
}

// newSigner returns the key of this name: the same name gives the same key.
func newSigner(name string) signer {
	seed := sha256.Sum256([]byte("lab key " + name))
	return signer{name, ed25519.NewKeyFromSeed(seed[:])}
}

// readSigner reads a file of nix-store --generate-binary-cache-key.
func readSigner(file string) (signer, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return signer{}, err
	}
	name, data, _ := strings.Cut(strings.TrimSpace(string(text)), ":")
	key, err := base64.StdEncoding.DecodeString(data)
	if err != nil || len(key) != ed25519.PrivateKeySize {
		return signer{}, fmt.Errorf("%s: no secret key", file)
	}
	return signer{name, key}, nil
}

func (s signer) public() string {
	return s.name + ":" + base64.StdEncoding.EncodeToString(s.key.Public().(ed25519.PublicKey))
}

func (s signer) sign(n *nix.NarInfo) string {
	return s.name + ":" + base64.StdEncoding.EncodeToString(ed25519.Sign(s.key, n.Fingerprint()))
}

// sqlite runs statements on a host's database of Nix.
func (h *host) sqlite(ctx context.Context, statements string) (string, error) {
	cmd := exec.CommandContext(ctx, "sqlite3", "-bail", filepath.Join(h.Client.Root, "nix/var/nix/db/db.sqlite"))
	cmd.Stdin = strings.NewReader(".timeout 20000\n" + statements)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("sqlite3: %w: %s", err, out)
	}
	return string(out), nil
}

// row is the statement for path number i of a made-up store.
func row(s signer, i int) (string, nix.StoreHash) {
	sum := sha256.Sum256([]byte("made up " + strconv.Itoa(i)))
	hash := nix.StoreHash(sum[:20])
	nar := sha256.Sum256(sum[:])
	path := nix.StoreDir + "/" + hash.String() + "-made-up-" + strconv.Itoa(i)
	sp, err := nix.ParseStorePath(path)
	if err != nil {
		panic(err) // it is made of what store paths are made of
	}
	n := &nix.NarInfo{StorePath: sp, NarHash: nar, NarSize: int64(1000 + 8*(i%100000))}
	return fmt.Sprintf("INSERT INTO ValidPaths (path, hash, registrationTime, narSize, sigs) VALUES ('%s','sha256:%s',1,%d,'%s');\n",
		path, hex.EncodeToString(nar[:]), n.NarSize, s.sign(n)), hash
}

// madeUp is how many paths the made-up store has.
const madeUp = 100_000

// makeUp fills the database of a host; no path has files.
func (h *host) makeUp(ctx context.Context, s signer, from, to int) error {
	var b bytes.Buffer
	b.WriteString("BEGIN;\n")
	for i := from; i < to; i++ {
		statement, _ := row(s, i)
		b.WriteString(statement)
	}
	b.WriteString("COMMIT;\n")
	_, err := h.sqlite(ctx, b.String())
	return err
}

var inventoryLine = regexp.MustCompile(`msg=inventory.* paths=(\d+) bytes=(\d+)`)

func prefilled(ctx context.Context, st *stage) error {
	a, b := st.hosts[0], st.hosts[1]
	s, err := readSigner(st.corpus.SecretKey)
	if err != nil {
		return err
	}
	// Nix makes the database, nothing else is in it.
	if _, err := a.Client.Run(ctx, "nix-store", "--init"); err != nil {
		return err
	}
	if err := a.makeUp(ctx, s, 0, madeUp); err != nil {
		return err
	}
	if err := st.startAll(ctx, []*host{b}); err != nil {
		return err
	}
	begun := time.Now()
	if err := a.start(); err != nil {
		return err
	}
	if err := a.Ready(ctx); err != nil {
		return err
	}
	st.figure("A's node answers after", time.Since(begun).Seconds(), "%.2f s")
	_, ok := st.know(ctx, 30*time.Second, b, a, madeUp)
	took := time.Since(begun)
	st.check(ok && took < 10*time.Second, "B knows all 100,000 paths within 10s of A's first start", "%s", rig.Seconds(took))
	u, err := a.Node.Usage()
	if err != nil {
		return err
	}
	st.figure("A: CPU until then", u.CPU.Seconds(), "%.2f s")
	st.figure("A: memory then", float64(u.RSS), "%s", rig.Megabytes(u.RSS))
	for _, line := range b.LogLines("msg=inventory") {
		if m := inventoryLine.FindStringSubmatch(line); m != nil && m[1] == strconv.Itoa(madeUp) {
			size, _ := strconv.ParseFloat(m[2], 64)
			st.figure("inventory of 100,000 paths on the wire", size, "%.0f bytes")
		}
	}
	_, hash := row(s, madeUp/2)
	code, _, took := b.NarInfo(ctx, hash.String())
	st.check(code == http.StatusOK, "B has the narinfo of one of them from A", "%d after %s", code, rig.Seconds(took))

	// What changes from now on.
	statement, hash := row(s, madeUp)
	if _, err := a.sqlite(ctx, statement); err != nil {
		return err
	}
	// Not asked for before it is known: B would remember for a minute that nobody has it.
	took, ok = rig.Until(ctx, 10*time.Second, func() bool { return b.pathsOf(ctx, a) == madeUp+1 })
	code, _, _ = b.NarInfo(ctx, hash.String())
	st.check(ok && took < 3*time.Second && code == http.StatusOK, "a path that A's Nix registers is known to B within 3s", "%s, then %d", rig.Seconds(took), code)
	if _, err := a.sqlite(ctx, fmt.Sprintf("DELETE FROM ValidPaths WHERE path LIKE '%s%%';\n", nix.StoreDir+"/"+hash.String())); err != nil {
		return err
	}
	took, ok = rig.Until(ctx, 10*time.Second, func() bool { return b.pathsOf(ctx, a) == madeUp })
	st.check(ok && took < 3*time.Second, "a path that A's Nix deletes is gone for B within 3s", "%s", rig.Seconds(took))
	return nil
}
