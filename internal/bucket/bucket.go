// Package bucket is a plain Nix binary cache in an object store: nix-cache-info, HASH.narinfo with
// the signatures of the upstream, and nar/… next to it. Any Nix can read it without this program.
//
// It writes what this machine fetched from another cache, once for all that use the bucket: the
// NAR first, the narinfo last, in the background. Reading is that of any HTTP cache, which
// internal/upstream does; this package signs its requests.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/signer"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// Config is what New needs.
type Config struct {
	Location Location
	// ShareKeys are the names of the keys whose paths are written.
	ShareKeys []string
	// Files has the NARs that are written, the cache of this machine. A form other than raw that
	// it returns was decoded to the signed NAR before.
	Files Files
	// Infos has the narinfos of paths whose turn comes late, or after a restart.
	Infos Infos
	// Unwritten keeps what waits over restarts.
	Unwritten Storage
	Transport http.RoundTripper // for what is written; if nil, Go's own
	Log       *slog.Logger      // if nil, nothing is logged
	Metrics   *metrics.Metrics  // required
	Getenv    func(string) string
}

// Files reads NARs on this machine. The error wraps fs.ErrNotExist if it has none.
type Files interface {
	NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error)
}

// Infos remembers narinfos on this machine. The error wraps fs.ErrNotExist if it has none.
type Infos interface {
	Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error)
}

// Storage keeps named values.
type Storage interface {
	Load() map[string][]byte
	Put(name string, value []byte)
	Delete(name string)
}

const (
	// maxWaiting bounds what waits to be written. What comes above that is not written.
	maxWaiting = 16 << 10
	// maxInfos is how many of those that wait have their narinfo in memory.
	maxInfos = 1 << 10
	// writers is how many paths are written at once.
	writers = 4
	// tries is how often a path is tried. An attempt counts only if the bucket can be reached.
	tries = 3
	// flushFor is how long Run goes on writing when it is to end.
	flushFor = 10 * time.Second
	// maxThere and thereFor bound what is remembered to be in the bucket, so that it is not asked for
	// each path that is given from the cache again and again.
	maxThere = 16 << 10
	thereFor = time.Hour
	// A request may take answerTime and what its body takes at slowest bytes a second.
	answerTime = 20 * time.Second
	slowest    = 64 << 10
	// maxSinglePut is the largest object that is sent in one request. Parts of larger ones are held
	// in memory.
	maxSinglePut = 4 << 30
	partSize     = 16 << 20
)

// Bucket writes to a bucket and signs requests that read it. It is safe for concurrent use.
type Bucket struct {
	cfg    Config
	client *minio.Client
	creds  *credentials.Credentials
	rest   backoff.Delay // after a failure to write
	there  *backoff.Set[nix.StoreHash]
	wake   chan struct{}

	mu sync.Mutex
	queue
	active int
	last   error // of the last attempt to write
	ready  bool  // nix-cache-info is there
}

// New returns the bucket. It opens no connection.
func New(cfg Config) (*Bucket, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	creds := credentials.New(newUsual(cfg.Location.Profile, cfg.Getenv))
	lookup := minio.BucketLookupPath
	if cfg.Location.virtual {
		lookup = minio.BucketLookupDNS
	}
	client, err := minio.New(cfg.Location.Endpoint, &minio.Options{
		Creds: creds, Secure: !cfg.Location.Plain, Region: cfg.Location.Region, BucketLookup: lookup,
		Transport: cfg.Transport, MaxRetries: 1, // Run tries again
	})
	if err != nil {
		return nil, fmt.Errorf("bucket: %w", err)
	}
	b := &Bucket{
		cfg: cfg, client: client, creds: creds, rest: backoff.Delay{First: time.Second, Most: 5 * time.Minute},
		there: backoff.NewSet[nix.StoreHash](maxThere), wake: make(chan struct{}, 1),
	}
	b.queue.load(cfg.Unwritten)
	return b, nil
}

// emptySum is the SHA-256 of no bytes.
const emptySum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// Sign signs a request that has no body. It does nothing if there are no credentials.
func (b *Bucket) Sign(r *http.Request) error {
	v, err := b.creds.Get()
	if err != nil || v.AccessKeyID == "" {
		return err
	}
	r.Header.Set("X-Amz-Content-Sha256", emptySum)
	signer.SignV4(*r, v.AccessKeyID, v.SecretAccessKey, v.SessionToken, b.cfg.Location.Region) // changes the headers of r
	return nil
}

// Put has a path written whose NAR this machine has in a form. It does not block: what is not
// signed by a share key, waits already, is there, or is too much, is dropped.
func (b *Bucket) Put(info *verify.Info, form nix.Form) {
	h := info.StorePath().Hash()
	if !info.SignedByAny(b.cfg.ShareKeys) || b.there.Has(h) {
		return
	}
	b.mu.Lock()
	ok := b.queue.add(info, form)
	b.mu.Unlock()
	if !ok {
		b.count("dropped")
	}
	b.notify()
}

func (b *Bucket) notify() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *Bucket) count(result string) { b.cfg.Metrics.BucketWrites.WithLabelValues(result).Inc() }

// Run writes until ctx ends, and then for flushFor what is left.
func (b *Bucket) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	context.AfterFunc(ctx, func() { time.AfterFunc(flushFor, stop) })
	var all sync.WaitGroup
	for range writers {
		all.Go(func() { b.writeAll(ctx, work) })
	}
	all.Wait()
	return nil
}

// writeAll writes what waits until ctx has ended and nothing waits, or work has ended.
func (b *Bucket) writeAll(ctx, work context.Context) {
	defer b.notify() // the next one looks, too
	for work.Err() == nil {
		j := b.take()
		if j == nil {
			if ctx.Err() != nil {
				return
			}
			select {
			case <-ctx.Done():
			case <-b.wake:
			case <-time.After(time.Second): // the end of a rest
			}
			continue
		}
		b.done(j, b.write(work, j))
		b.notify()
	}
}

// take returns the next path, nil if there is none or the bucket rests.
func (b *Bucket) take() *job {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.rest.Ready() {
		return nil
	}
	j := b.queue.next()
	if j != nil {
		b.active++
	}
	return j
}

// done notes how a write ended. One that failed waits again, behind the others, while it has tries.
func (b *Bucket) done(j *job, err error) {
	gone := source.Absent(err) || source.Invalid(err) != nil // of the cache: nothing about the bucket
	if err != nil && !gone {
		b.rest.Fail()
	} else if err == nil {
		b.rest.Succeed()
		b.there.Add(j.name.Store, thereFor)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.active--
	was := b.last
	if !gone {
		b.last = err
	}
	var answer minio.ErrorResponse
	if errors.As(err, &answer) {
		j.tries++
	}
	if err != nil && !gone && j.tries < tries {
		b.waiting = append(b.waiting, j)
	} else {
		b.queue.end(j)
		if err != nil {
			b.count("failed")
		}
	}
	if err != nil && !gone && was == nil {
		b.cfg.Log.Warn("the bucket cannot be written; it is tried again", "bucket", b.cfg.Location.String(), "err", err)
	}
}

// write brings one path into the bucket, unless it is there.
func (b *Bucket) write(ctx context.Context, j *job) error {
	info, err := b.info(ctx, j)
	if err != nil {
		return err
	}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	name := j.name.Store.String() + ".narinfo"
	if there, err := b.has(ctx, name); err != nil || there {
		if there {
			b.count("there")
		}
		return err
	}
	if err := b.writeNAR(ctx, info, j.name); err != nil {
		return err
	}
	if err := b.putText(ctx, name, "text/x-nix-narinfo", string(info.Offer(j.name.Form))); err != nil {
		return err
	}
	b.count("written")
	return nil
}

// info returns the narinfo of a job. One that is remembered may be another by now: of another build, with another file,
// or, since share keys may have changed, not for others. The error wraps fs.ErrNotExist then.
func (b *Bucket) info(ctx context.Context, j *job) (*verify.Info, error) {
	if j.info != nil {
		return j.info, nil
	}
	info, err := b.cfg.Infos.Info(ctx, j.name.Store)
	if err != nil {
		return nil, err
	}
	file, ok := info.FileForm()
	switch {
	case !info.SignedByAny(b.cfg.ShareKeys):
		return nil, fmt.Errorf("bucket: %s: no share key signed it: %w", j.name.Store, fs.ErrNotExist)
	case info.NarHash() != j.name.Nar, !j.name.Form.IsRaw() && !(ok && file == j.name.Form):
		return nil, fmt.Errorf("bucket: %s: another narinfo by now: %w", j.name.Store, fs.ErrNotExist)
	}
	return info, nil
}

// prepare makes the bucket a binary cache, once.
func (b *Bucket) prepare(ctx context.Context) error {
	b.mu.Lock()
	ready := b.ready
	b.mu.Unlock()
	if ready {
		return nil
	}
	const name = "nix-cache-info"
	there, err := b.has(ctx, name)
	if err == nil && !there {
		err = b.putText(ctx, name, "text/x-nix-cache-info", "StoreDir: "+nix.StoreDir+"\nWantMassQuery: 1\nPriority: 30\n")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ready = err == nil
	return err
}

// writeNAR copies the file from the cache. It is hashed on the way, and left without a narinfo
// if it is wrong.
func (b *Bucket) writeNAR(ctx context.Context, info *verify.Info, name nix.NARName) error {
	u, err := b.cfg.Files.NAR(ctx, info, name.Form, 0)
	if err != nil {
		return err
	}
	defer u.Body.Close()
	proof := verify.NewProof(info.Digest(name.Form, u.Size))
	// Only the reader: with more methods than that, it would be read twice.
	if err := b.put(ctx, name.URL(), "application/x-nix-nar", struct{ io.Reader }{io.TeeReader(u.Body, proof)}, u.Size); err != nil {
		return err
	}
	return proof.Check()
}

// has reports whether there is an object.
func (b *Bucket) has(ctx context.Context, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	_, err := b.client.StatObject(ctx, b.cfg.Location.Name, b.cfg.Location.Prefix+name, minio.StatObjectOptions{})
	switch minio.ToErrorResponse(err).StatusCode {
	case http.StatusNotFound, http.StatusForbidden: // the latter of whoever may not list
		return false, nil
	}
	return err == nil, err
}

func (b *Bucket) putText(ctx context.Context, name, kind, text string) error {
	return b.put(ctx, name, kind, strings.NewReader(text), int64(len(text)))
}

func (b *Bucket) put(ctx context.Context, name, kind string, body io.Reader, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime+time.Duration(size/slowest)*time.Second)
	defer cancel()
	_, err := b.client.PutObject(ctx, b.cfg.Location.Name, b.cfg.Location.Prefix+name, body, size, minio.PutObjectOptions{
		ContentType: kind, DisableMultipart: size <= maxSinglePut, PartSize: partSize, NumThreads: 1,
	})
	if err == nil {
		b.cfg.Metrics.BucketBytes.WithLabelValues("written").Add(float64(size))
	}
	return err
}

// Health is how writing goes, for people.
type Health struct {
	Waiting   int    // paths to be written
	LastError string // of the last attempt, "" if it worked
}

// Health returns how writing goes.
func (b *Bucket) Health() Health {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := Health{Waiting: len(b.waiting) + b.active}
	if b.last != nil {
		h.LastError = b.last.Error()
	}
	return h
}
