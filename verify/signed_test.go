package verify_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/verify"
)

// signedKeys are the keys of lines that a signature covers, or that follow from what it covers.
var signedKeys = []string{"StorePath", "NarHash", "NarSize", "References", "Sig", "CA"}

// TestUnsignedLines: whatever stands in lines that nobody signed, what leaves is the same.
func TestUnsignedLines(t *testing.T) {
	keys := realKeys(t)
	for _, path := range realPaths(t, "*.narinfo", 15) {
		text, h := realText(t, path)
		info, err := keys.Open(text, h)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.SplitAfter(strings.TrimSuffix(string(text), "\n"), "\n")
		lines[len(lines)-1] += "\n"
		unsigned := func(line string) bool {
			key, value, _ := strings.Cut(line, ":")
			return !slices.Contains(signedKeys, key) || key == "Sig" && !strings.HasPrefix(value, " cache.nixos.org-1:")
		}
		for name, edited := range map[string][]string{
			"none":     slices.DeleteFunc(slices.Clone(lines), unsigned),
			"reversed": reversed(lines),
			"doubled":  slices.Concat(lines, slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return !unsigned(l) })),
			"hostile": slices.Concat([]string{
				"CA: fixed:r:sha256:" + strings.Repeat("1", 52) + "\n", "CA: text:sha256:x\n", "CA: fixed:nonsense\n", "CA:\n",
				"Deriver: 1bjw8w6ksss0s5d52b4ryxlm0ccxzdjd-secret.drv\n", "Sig: " + strings.Repeat("k", 1000) + ":x\n", "Sig:\n",
				"Sig: x:" + strings.Repeat("A", 86) + "==\n", "System: x\n", "FileHash: sha512:x\n", "FileSize: -1\n", "URL:\n", "Compression: foo\n",
				"Foo:bar\n", "junk\n", "\n", "\x00\n", ":\n",
			}, lines, []string{"URL: http://evil.example/\n", "Compression: lz4\n", "CA: fixed:nonsense\n"}),
		} {
			got, err := keys.Open([]byte(strings.Join(edited, "")), h)
			if err != nil {
				t.Errorf("%s, %s: %v", path, name, err)
				continue
			}
			if !bytes.Equal(got.Offer(nix.Raw), info.Offer(nix.Raw)) {
				t.Errorf("%s, %s:\n%s\nnot\n%s", path, name, got.Offer(nix.Raw), info.Offer(nix.Raw))
			}
		}
	}
}

func reversed(lines []string) []string {
	lines = slices.Clone(lines)
	slices.Reverse(lines)
	return lines
}

// FuzzUnsignedLine: a line that is added, put in place of an unsigned one, or moved changes nothing
// that leaves.
func FuzzUnsignedLine(f *testing.F) {
	keys := realKeys(f)
	var texts [][]byte
	var hashes []nix.StoreHash
	for _, path := range realPaths(f, "*.narinfo", 15) {
		if text, h := realText(f, path); len(text) < 10000 {
			texts, hashes = append(texts, text), append(hashes, h)
		}
	}
	for i, line := range []string{
		"CA: fixed:r:sha256:" + strings.Repeat("1", 52), "CA: text:sha256:x", "Deriver: x", "URL: x", "Sig: cache.nixos.org-1:x", "FileHash: sha512:x", "x", "",
	} {
		f.Add(uint(i), line, int64(i))
	}
	f.Fuzz(func(t *testing.T, which uint, line string, seed int64) {
		i := which % uint(len(texts))
		if key, _, _ := strings.Cut(line, ":"); strings.Contains(line, "\n") || slices.Contains(signedKeys[:4], key) || len(line) > 1<<16 {
			return
		}
		info, err := keys.Open(texts[i], hashes[i])
		if err != nil {
			t.Fatal(err)
		}
		random := rand.New(rand.NewPCG(uint64(seed), 1))
		var lines []string
		for l := range strings.Lines(string(texts[i])) {
			key, _, _ := strings.Cut(l, ":")
			if slices.Contains(signedKeys, key) || random.IntN(2) == 0 {
				lines = append(lines, l)
			}
		}
		lines = append(lines, line+"\n")
		random.Shuffle(len(lines), func(a, b int) { lines[a], lines[b] = lines[b], lines[a] })
		text := strings.Join(lines, "")
		got, err := keys.Open([]byte(text), hashes[i])
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if a, b := got.Offer(nix.Raw), info.Offer(nix.Raw); !bytes.Equal(a, b) {
			t.Fatalf("%s\nnot\n%s", a, b)
		}
	})
}

// TestFrameHonest: what one node accepts every other node accepts when it is offered again, also
// when the text was as long as is read.
func TestFrameHonest(t *testing.T) {
	keys := nixtest.Keys(t, alice, bob)
	fill := func(text []byte) []byte { // a junk line that makes the text as long as is read
		return append(text, "X: "+strings.Repeat("k", nix.MaxNarInfo-len(text)-4)+"\n"...)
	}
	n := hello.Signed(alice)
	n.URL, n.FileHash, n.FileSize = "x", nix.FileHash{}, 0
	checkPassedOn(t, keys, fill(n.AppendText(nil)), n.StorePath.Hash(), true)

	// So many references that the rest has just no room, or just room.
	for _, refs := range []int{nix.MaxNarInfo / 44, (nix.MaxNarInfo - 4<<10) / 44} {
		n := hello.NarInfo()
		for i := range refs {
			p, err := nix.ParseBaseName(fmt.Sprintf("6lwdzpbig6zz8678blcqr5f5q1caxjw2-%010d", i))
			if err != nil {
				t.Fatal(err)
			}
			n.References = append(n.References, p)
		}
		n.References = nix.SortPaths(n.References)
		alice.Sign(n)
		n.URL, n.Compression, n.FileHash, n.FileSize = "nar/x", nix.XZ, nix.FileHash{1}, 1<<62
		if text := n.AppendText(nil); len(text) <= nix.MaxNarInfo {
			checkPassedOn(t, keys, text, n.StorePath.Hash(), refs < nix.MaxNarInfo/44)
		}
	}
}

func checkPassedOn(t *testing.T, keys *verify.Keys, text []byte, h nix.StoreHash, accepted bool) {
	t.Helper()
	info, err := keys.Open(text, h)
	if (err == nil) != accepted {
		t.Errorf("text of %d bytes: %v", len(text), err)
	}
	if err != nil {
		reasonOf(t, err)
		return
	}
	form, _ := info.FileForm()
	for _, out := range [][]byte{info.Offer(nix.Raw), info.Offer(form), info.Text()} {
		if len(out) > nix.MaxNarInfo {
			t.Errorf("%d bytes are passed on", len(out))
		}
		again, err := keys.Open(out, h)
		if err != nil || !again.Equal(info) || !bytes.Equal(again.Offer(nix.Raw), info.Offer(nix.Raw)) {
			t.Errorf("text of %d bytes, passed on as %d: %v", len(text), len(out), err)
		}
	}
}

// TestFat: what is kept of a narinfo does not grow with what nobody signed.
func TestFat(t *testing.T) {
	keys := nixtest.Keys(t, alice)
	thin := hello.Info(t, alice)
	for name, fat := range map[string]string{
		"key name":    "Sig: " + strings.Repeat("k", 900_000) + ":" + strings.Repeat("A", 86) + "==\n",
		"signatures":  forgeries("mallory-1", 9000),
		"forgeries":   forgeries("alice-1", 50),
		"CA":          "CA: fixed:r:sha256:" + strings.Repeat("1", 900_000) + "\n",
		"URL":         "URL: " + strings.Repeat("u", 900_000) + "\n",
		"compression": "Compression: " + strings.Repeat("c", 900_000) + "\n",
		"unknown":     strings.Repeat("X: y\n", 100_000),
	} {
		info, err := keys.Open(append([]byte(fat), signed(func(*nix.NarInfo) {})...), hello.Hash())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if info.Size() > thin.Size() || len(info.Text()) > len(thin.Text()) {
			t.Errorf("%s: %d bytes in memory, %d of text; thin: %d, %d", name, info.Size(), len(info.Text()), thin.Size(), len(thin.Text()))
		}
	}
	spaces := strings.Replace(string(signed(func(*nix.NarInfo) {})), "References: ", "References: "+strings.Repeat(" ", 900_000), 1)
	var kept []*verify.Info
	before := heap()
	for range 100 {
		info, err := keys.Open([]byte(spaces), hello.Hash())
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, info)
	}
	if grown := int64(heap()) - int64(before); grown > int64(200*thin.Size()) {
		t.Errorf("100 Infos of %d bytes take %d", kept[0].Size(), grown)
	}
	runtime.KeepAlive(kept)
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestWithoutHints(t *testing.T) {
	info, err := nixtest.Keys(t, alice).Open(signed(func(n *nix.NarInfo) {
		n.URL, n.Compression, n.FileHash, n.FileSize = "http://evil.example/", nix.XZ, nix.FileHash{1}, 5
	}), hello.Hash())
	if err != nil {
		t.Fatal(err)
	}
	bare := info.WithoutHints()
	if _, ok := bare.FileForm(); ok || bare.Hints() != (verify.Hints{}) || !bare.Equal(info) || bytes.Contains(bare.Text(), []byte("evil")) {
		t.Errorf("%s", bare.Text())
	}
	if _, ok := info.FileForm(); !ok {
		t.Error("the original has changed")
	}
}
