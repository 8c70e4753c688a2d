package demo

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
)

// keyName is the name of the key that signs the closure. The key itself is made anew for each
// run and never leaves it.
const keyName = "nixp2p-demo-1"

// seed makes the closure the same in each run.
const seed = 2

// made is one path of the closure, as the upstream has it.
type made struct {
	path    nix.StorePath
	narHash nix.NarHash
	narSize int64
	file    []byte // the NAR in zstd
	info    []byte // narinfo text, signed
}

// closure is a package with all that it needs, made up.
type closure struct {
	paths     []made
	top       nix.StorePath
	publicKey string
	narBytes  int64
	fileBytes int64
}

// sketch is a path before its contents are made.
type sketch struct {
	path nix.StorePath
	size int64 // of its contents, about
	refs []nix.StorePath
}

// makeClosure makes a closure of about size bytes of NARs.
func makeClosure(ctx context.Context, paths int, size int64) (*closure, error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	plan, err := sketchClosure(paths, size)
	if err != nil {
		return nil, err
	}
	c := &closure{
		paths: make([]made, len(plan)), top: plan[len(plan)-1].path,
		publicKey: nix.PublicKey{Name: keyName, Key: [ed25519.PublicKeySize]byte(public)}.String(),
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, s := range plan {
		g.Go(func() (err error) {
			if err := ctx.Err(); err != nil {
				return err
			}
			c.paths[i], err = s.make(private)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, p := range c.paths {
		c.narBytes += p.narSize
		c.fileBytes += int64(len(p.file))
	}
	return c, nil
}

// sketchClosure decides names, sizes and references. The last path is the top, from which all
// others are reached.
func sketchClosure(paths int, size int64) ([]sketch, error) {
	r := rand.New(rand.NewPCG(seed, 0))
	plan := make([]sketch, paths)
	referred := make([]bool, paths)
	for i, bytes := range sizes(r, paths, size) {
		name := fmt.Sprintf("%s%s-%d.%d", words[r.IntN(len(words))], words[r.IntN(len(words))], r.IntN(9), r.IntN(30))
		hash := sha256.Sum256(fmt.Appendf(nil, "nixp2p demo %d %s", i, name))
		path, err := nix.ParseBaseName(nix.StoreHash(hash[:20]).String() + "-" + name)
		if err != nil {
			return nil, fmt.Errorf("demo: %w", err)
		}
		plan[i] = sketch{path: path, size: bytes}
		for range min(i, 1+r.IntN(4)) {
			to := int(float64(i) * math.Pow(r.Float64(), 1.5)) // the first ones are what most need, as a C library is
			plan[i].refs = append(plan[i].refs, plan[to].path)
			referred[to] = true
		}
	}
	top := &plan[paths-1]
	for i := range paths - 1 {
		if !referred[i] {
			top.refs = append(top.refs, plan[i].path)
		}
	}
	for i := range plan {
		plan[i].refs = nix.SortPaths(plan[i].refs)
	}
	return plan, nil
}

// sizes draws sizes with the spread of real closures, a mean of several times the median, and
// scales them to the total. No path has more than an eighth: a run should show many paths on
// their way, not one.
func sizes(r *rand.Rand, n int, total int64) []int64 {
	const sigma = 1.8
	draw := make([]float64, n)
	for i := range draw {
		draw[i] = math.Exp(sigma * r.NormFloat64())
	}
	for range 8 { // what is cut off one is spread over the others
		sum := 0.0
		for _, d := range draw {
			sum += d
		}
		for i := range draw {
			draw[i] = min(draw[i]/sum, 1.0/8)
		}
	}
	out := make([]int64, n)
	for i, d := range draw {
		out[i] = int64(d * float64(total))
	}
	return out
}

var words = []string{"alder", "brook", "cedar", "dune", "elm", "fern", "glen", "heath", "iris", "juniper", "kelp", "larch", "moss", "oak", "pine", "reed", "sage", "thorn", "willow", "yew"}

// make makes contents, NAR, file and narinfo.
func (s *sketch) make(key ed25519.PrivateKey) (made, error) {
	var nar, file bytes.Buffer
	nar.Grow(int(s.size) + 4096)
	if err := writeNAR(&nar, s.tree()); err != nil {
		return made{}, err
	}
	z := compress.NewZstdWriter(&file)
	defer z.Release()
	if _, err := z.Write(nar.Bytes()); err != nil {
		return made{}, err
	}
	if err := z.Close(); err != nil {
		return made{}, err
	}
	m := made{path: s.path, narHash: sha256.Sum256(nar.Bytes()), narSize: int64(nar.Len()), file: slices.Clone(file.Bytes())}
	n := &nix.NarInfo{
		StorePath: s.path, Compression: nix.Zstd, FileHash: sha256.Sum256(m.file), FileSize: int64(len(m.file)),
		NarHash: m.narHash, NarSize: m.narSize, References: s.refs,
	}
	n.URL = m.url()[1:]
	sig := ed25519.Sign(key, n.Fingerprint())
	n.Sigs = []nix.Signature{{KeyName: keyName, Data: [ed25519.SignatureSize]byte(sig)}}
	m.info = n.AppendText(nil)
	return m, nil
}

// url returns the path of the file on the upstream.
func (m *made) url() string { return "/nar/" + m.narHash.Nix32() + ".nar.zst" }

// tree is what the path looks like: a program, its library, a link, and a list of what it
// refers to.
func (s *sketch) tree() entry {
	name := s.path.Name()
	script := "#!/bin/sh\necho " + name + "\n"
	t := dir("",
		dir("bin", entry{name: name, kind: kindExec, data: []byte(script)}),
		dir("lib",
			entry{name: "lib" + name + ".so", kind: kindFile, data: contents(s.path, int(s.size))},
			entry{name: "lib" + name + ".so.1", kind: kindLink, target: "lib" + name + ".so"}),
	)
	if len(s.refs) > 0 {
		var list []byte
		for _, ref := range s.refs {
			list = append(append(list, ref.String()...), '\n')
		}
		t.children = append(t.children, dir("nix-support", entry{name: "references", kind: kindFile, data: list}))
	}
	return t
}

// contents returns n bytes that compress to about half, as programs do: noise of which each
// kilobyte comes twice.
func contents(path nix.StorePath, n int) []byte {
	const block = 1 << 10
	var source [32]byte
	hash := path.Hash()
	copy(source[:], hash[:])
	r := rand.NewChaCha8(source)
	b := make([]byte, n)
	for at := 0; at < n; at += 2 * block {
		first := b[at:min(at+block, n)]
		_, _ = r.Read(first) // never fails
		copy(b[min(at+block, n):min(at+2*block, n)], first)
	}
	return b
}
