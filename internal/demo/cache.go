package demo

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
)

const (
	// keyName is the name of the key that signs the paths. A new key is made for each run.
	keyName = "nixp2p-demo-1"
	// upstreamDelay is the round trip to the upstream: that of a good line to cache.nixos.org.
	upstreamDelay = 20 * time.Millisecond
	// uplinkBurst is how many bytes the uplink sends at once.
	uplinkBurst = 16 << 10
)

// path is a store path of the upstream.
type path struct {
	info *nix.NarInfo
	file []byte // the NAR as zstd
}

// upstream is a binary cache on loopback behind a slow line. It counts what it sends.
type upstream struct {
	url       string
	publicKey string
	paths     []path
	narBytes  int64 // of all paths, raw
	fileBytes int64 // and as zstd

	line    *rate.Limiter
	content map[string][]byte // by URL path
	srv     *http.Server
	done    chan struct{}

	narRequests, sent atomic.Int64
}

// startUpstream makes up signed paths of about size bytes and serves them at bytesPerSecond
// until stop is called. With lie, one file is not what its narinfo says.
func startUpstream(ctx context.Context, paths int, size, bytesPerSecond int64, lie bool) (*upstream, error) {
	u := &upstream{
		line:    rate.NewLimiter(rate.Limit(bytesPerSecond), uplinkBurst),
		content: map[string][]byte{"/nix-cache-info": nix.CacheInfo{StoreDir: nix.StoreDir, WantMassQuery: true, Priority: 40}.Text()},
		done:    make(chan struct{}),
	}
	if err := u.fill(ctx, paths, size); err != nil {
		return nil, err
	}
	if lie {
		p := u.paths[len(u.paths)/2]
		wrong := bytes.Clone(p.file)
		wrong[len(wrong)/2] ^= 1
		u.content["/"+p.info.URL] = wrong
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLoopback, err)
	}
	u.url = "http://" + l.Addr().String()
	u.srv = &http.Server{Handler: u, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	go func() {
		defer close(u.done)
		_ = u.srv.Serve(l)
	}()
	// Where connections to loopback are filtered, say so before the nodes are started.
	if err := get(ctx, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, u.url+"/nix-cache-info", func(io.Reader) error { return nil }); err != nil {
		u.stop()
		return nil, fmt.Errorf("%w: %w", ErrLoopback, err)
	}
	return u, nil
}

// fill makes the paths. Their sizes differ as in a real closure: a few large ones, many small.
func (u *upstream) fill(ctx context.Context, paths int, size int64) error {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	u.publicKey = nix.PublicKey{Name: keyName, Key: [ed25519.PublicKeySize]byte(public)}.String()
	weights, sum := make([]float64, paths), 0.0
	for i := range weights {
		weights[i] = 1 / float64(i%8+1) / float64(i%8+1)
		sum += weights[i]
	}
	var refs []nix.StorePath
	for i, w := range weights {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, err := makePath(i, int(w/sum*float64(size)), refs[max(0, len(refs)-3):], private)
		if err != nil {
			return err
		}
		refs = append(refs, p.info.StorePath)
		u.paths = append(u.paths, p)
		u.narBytes += p.info.NarSize
		u.fileBytes += p.info.FileSize
		u.content["/"+p.info.StorePath.Hash().String()+".narinfo"] = p.info.AppendText(nil)
		u.content["/"+p.info.URL] = p.file
	}
	return nil
}

// makePath makes a store path with one file of n bytes that compress to about half.
func makePath(i, n int, refs []nix.StorePath, key ed25519.PrivateKey) (path, error) {
	name := fmt.Sprintf("example-%d.0", i+1)
	seed := sha256.Sum256([]byte("nixp2p demo " + name))
	store, err := nix.ParseBaseName(nix.StoreHash(seed[:20]).String() + "-" + name)
	if err != nil {
		return path{}, err
	}
	const block = 1 << 10
	data, r := make([]byte, n), rand.NewChaCha8(seed)
	for at := 0; at < n; at += 2 * block {
		_, _ = r.Read(data[at:min(at+block, n)]) // never fails
		copy(data[min(at+block, n):], data[at:min(at+block, n)])
	}
	nar := makeNAR(data)
	var file bytes.Buffer
	z := compress.NewZstdWriter(&file)
	defer z.Release()
	if _, err := z.Write(nar); err != nil {
		return path{}, err
	}
	if err := z.Close(); err != nil {
		return path{}, err
	}
	info := &nix.NarInfo{
		StorePath: store, Compression: nix.Zstd, FileHash: sha256.Sum256(file.Bytes()), FileSize: int64(file.Len()),
		NarHash: sha256.Sum256(nar), NarSize: int64(len(nar)), References: nix.SortPaths(slices.Clone(refs)),
	}
	info.URL = "nar/" + info.NarHash.Nix32() + ".nar.zst"
	info.Sigs = []nix.Signature{{KeyName: keyName, Data: [ed25519.SignatureSize]byte(ed25519.Sign(key, info.Fingerprint()))}}
	return path{info, file.Bytes()}, nil
}

// makeNAR returns the NAR of a directory with one file.
func makeNAR(data []byte) []byte {
	b := make([]byte, 0, len(data)+1024)
	for _, s := range []string{nix.NARMagic, "(", "type", "directory", "entry", "(", "name", "data", "node", "(", "type", "regular", "contents"} {
		b = nix.AppendNARString(b, s)
	}
	b = nix.AppendNARLength(b, int64(len(data)))
	b = nix.AppendNARPadding(append(b, data...), int64(len(data)))
	for range 3 {
		b = nix.AppendNARString(b, ")")
	}
	return b
}

// stop closes the listener and all connections.
func (u *upstream) stop() {
	_ = u.srv.Close()
	<-u.done
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !pause(r.Context(), upstreamDelay) {
		return
	}
	b, ok := u.content[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream") // nothing to guess
	if strings.HasPrefix(r.URL.Path, "/nar/") {
		u.narRequests.Add(1)
		w = &paced{w, func(n int) error { return u.line.WaitN(r.Context(), n) }, &u.sent}
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// paced sends at the rate of the uplink, which all responses share.
type paced struct {
	http.ResponseWriter
	wait func(n int) error // until n bytes may be sent
	sent *atomic.Int64
}

func (p *paced) Write(b []byte) (written int, err error) {
	for chunk := range slices.Chunk(b, uplinkBurst) {
		if err := p.wait(len(chunk)); err != nil {
			return written, err
		}
		p.sent.Add(int64(len(chunk))) // before the other side can have them
		n, err := p.ResponseWriter.Write(chunk)
		if written += n; err != nil {
			return written, err
		}
	}
	return written, nil
}

// get passes the body of a successful answer to use.
func get(ctx context.Context, client *http.Client, url string, use func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, res.Status)
	}
	return use(res.Body)
}

// pause waits, and reports whether ctx is still valid.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
