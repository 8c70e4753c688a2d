// Package sourcetest is one suite that every source of the resolver passes, another that
// every cache with downloads passes, and a source and a cache in memory that do, for tests
// that need them to misbehave on demand. It is for tests only.
package sourcetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/verify"
)

// Fixture is what a source under test is filled with.
type Fixture struct {
	Key    nixtest.Key // has signed everything
	Keys   *verify.Keys
	Paths  []nixtest.Path // what the source has, from a tiny one to some MiB
	Absent nixtest.Path   // what it has not
}

// Subject is a source under test. One that knows no narinfos, or has no NARs, leaves that
// field nil.
type Subject struct {
	Infos resolve.InfoSource
	NARs  resolve.NARSource
	// File returns the compressed file of a path that the source passes on as it is, and its
	// form. Nil: it has only raw NARs.
	File func(p nixtest.Path) (nix.Form, []byte)
	// NoRaw: it does not make a raw NAR of what it has.
	NoRaw bool
}

// Of returns the Subject of a source that has both.
func Of(s resolve.Source) Subject { return Subject{Infos: s, NARs: s} }

// names are the labels in metrics, which are fixed.
var names = []string{"store", "disk", "cache", "peer", "upstream"}

// Run holds sources against the contract. open fills a source with the fixture; it is called
// several times. What the source leaves behind is for the package's own leak check.
func Run(t *testing.T, open func(t *testing.T, f *Fixture) Subject) {
	key := nixtest.NewKey("sourcetest-1")
	f := &Fixture{Key: key, Keys: nixtest.Keys(t, key), Absent: nixtest.NewPath("absent", 1000)}
	for _, p := range []struct {
		name string
		size int
	}{{"tiny", 1}, {"small", 100_000}, {"large", 3<<20 + 5}} {
		var refs []nix.StorePath
		for _, q := range f.Paths {
			refs = append(refs, q.StorePath)
		}
		f.Paths = append(f.Paths, nixtest.NewPath(p.name, p.size, refs...))
	}
	s := &suite{Fixture: f, Subject: open(t, f)}
	if s.Infos != nil {
		t.Run("Info", s.info)
	}
	if s.NARs != nil {
		t.Run("NAR", s.nar)
		t.Run("AbsentNAR", s.absentNAR)
		t.Run("OtherNAR", s.otherNAR)
		t.Run("CloseEarly", s.closeEarly)
		t.Run("Cancel", s.cancel)
		t.Run("Concurrent", s.concurrent)
		t.Run("Convict", func(t *testing.T) {
			(&suite{Fixture: f, Subject: open(t, f)}).convict(t)
		})
	}
}

type suite struct {
	*Fixture
	Subject
}

// blob is one form of one path.
type blob struct {
	path  nixtest.Path
	info  *verify.Info
	form  nix.Form
	bytes []byte
}

// blobs lists what the source gives.
func (s *suite) blobs(t *testing.T) (all []blob) {
	t.Helper()
	for _, p := range s.Paths {
		info := s.proof(t, p)
		if !s.NoRaw {
			all = append(all, blob{p, info, nix.Raw, p.NAR})
		}
		if s.File != nil {
			form, file := s.File(p)
			all = append(all, blob{p, info, form, file})
		}
	}
	return all
}

// proof returns the narinfo that the source has for p, or else one that another has.
func (s *suite) proof(t *testing.T, p nixtest.Path) *verify.Info {
	t.Helper()
	if s.Infos == nil {
		return p.Info(t, s.Key)
	}
	info, err := s.Infos.Info(t.Context(), p.Hash())
	if err != nil {
		t.Fatalf("Info of %s: %v", p.StorePath.Base(), err)
	}
	return info
}

func isLie(err error) bool {
	var lie *verify.InvalidError
	return errors.As(err, &lie)
}

// wantAbsent: an error that says no, and nothing else.
func wantAbsent(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, fs.ErrNotExist) || isLie(err) {
		t.Errorf("%s: error %v, want one that wraps fs.ErrNotExist and is no lie", what, err)
	}
}

func (s *suite) info(t *testing.T) {
	if !slices.Contains(names, s.Infos.Name()) {
		t.Errorf("Name %q is none of %v", s.Infos.Name(), names)
	}
	for _, p := range s.Paths {
		info := s.proof(t, p)
		if info.StorePath() != p.StorePath || !info.Equal(p.Info(t, s.Key)) || len(info.Signers()) == 0 {
			t.Errorf("Info of %s: says something else", p.StorePath.Base())
		}
	}
	info, err := s.Infos.Info(t.Context(), s.Absent.Hash())
	wantAbsent(t, "Info of an absent path", err)
	if info != nil {
		t.Error("an answer beside an error")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, p := range []nixtest.Path{s.Paths[0], s.Absent} {
		if _, err := s.Infos.Info(gone, p.Hash()); err != nil && (isLie(err) || p.Hash() != s.Absent.Hash() && errors.Is(err, fs.ErrNotExist)) {
			t.Errorf("asked with a context that has ended: %v", err)
		}
	}
	var group sync.WaitGroup
	defer group.Wait()
	for range 16 {
		group.Go(func() {
			for _, p := range s.Paths {
				if info, err := s.Infos.Info(t.Context(), p.Hash()); err != nil || info.NarHash() != p.NarHash() {
					t.Errorf("Info of %s, asked by many: %v", p.StorePath.Base(), err)
				}
			}
		})
	}
}

// read reads a form from off on.
func (s *suite) read(ctx context.Context, b blob, off int64) ([]byte, error) {
	claim, err := s.NARs.NAR(ctx, b.info, b.form, off)
	if err != nil {
		return nil, err
	}
	defer claim.Body.Close()
	if claim.Size != int64(len(b.bytes)) {
		return nil, errors.New("the claim names a wrong size")
	}
	return io.ReadAll(claim.Body)
}

func (s *suite) nar(t *testing.T) {
	if !slices.Contains(names, s.NARs.Name()) {
		t.Errorf("Name %q is none of %v", s.NARs.Name(), names)
	}
	for _, b := range s.blobs(t) {
		size := int64(len(b.bytes))
		for _, off := range []int64{0, 1, size / 2, size - 1, size} {
			got, err := s.read(t.Context(), b, off)
			switch {
			case err != nil && off == size && !isLie(err):
				// There is nothing to give: an error is as good as an empty body.
			case err != nil:
				t.Errorf("%s %s from %d: %v", b.path.StorePath.Base(), b.form, off, err)
			case !bytes.Equal(got, b.bytes[off:]):
				t.Errorf("%s %s from %d: %d wrong bytes", b.path.StorePath.Base(), b.form, off, len(got))
			}
		}
		got, err := s.read(t.Context(), b, size+1)
		if isLie(err) || err == nil && len(got) > 0 {
			t.Errorf("%s %s from behind the end: %d bytes, error %v", b.path.StorePath.Base(), b.form, len(got), err)
		}
	}
}

func (s *suite) absentNAR(t *testing.T) {
	absent := s.Absent.Info(t, s.Key)
	claim, err := s.NARs.NAR(t.Context(), absent, nix.Raw, 0)
	wantAbsent(t, "NAR of an absent path", err)
	if claim != nil {
		t.Error("a claim beside an error")
	}
	for _, c := range []nix.Compression{nix.XZ, nix.Zstd} {
		form := nix.Form{Compression: c, File: nix.FileHash{1, 2, 3}}
		_, err := s.NARs.NAR(t.Context(), s.proof(t, s.Paths[0]), form, 0)
		wantAbsent(t, "a file that it has not", err)
		_, err = s.NARs.NAR(t.Context(), absent, form, 0)
		wantAbsent(t, "a file of an absent path", err)
	}
}

// otherNAR: a proof that another build of a path was signed must not bring forth this one.
func (s *suite) otherNAR(t *testing.T) {
	p := s.Paths[1]
	other := p
	other.NAR = nixtest.FileNAR([]byte("another build"))
	claim, err := s.NARs.NAR(t.Context(), other.Info(t, s.Key), nix.Raw, 0)
	if err == nil {
		_ = claim.Body.Close()
	}
	wantAbsent(t, "NAR of another build of a path", err)
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc here")
	}
	return len(files)
}

func (s *suite) closeEarly(t *testing.T) {
	all := s.blobs(t)
	b := all[len(all)-1]
	before := openFiles(t)
	const times = 50
	for i := range times {
		claim, err := s.NARs.NAR(t.Context(), b.info, b.form, 0)
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			_, err = io.ReadFull(claim.Body, make([]byte, 10))
		}
		if err = errors.Join(err, claim.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if n, err := claim.Body.Read(make([]byte, 10)); n > 0 || err == nil {
			t.Errorf("read %d bytes after Close, error %v", n, err)
		}
		_ = claim.Body.Close() // twice is no harm
	}
	// What is pooled may stay open.
	if after := openFiles(t); after > before+times/2 {
		t.Errorf("%d open files before, %d after", before, after)
	}
}

// cancel: a context that ends while a body is read ends that soon, and never looks like the end.
func (s *suite) cancel(t *testing.T) {
	for _, b := range s.blobs(t) {
		ctx, cancel := context.WithCancel(t.Context())
		claim, err := s.NARs.NAR(ctx, b.info, b.form, 0)
		if err != nil {
			cancel()
			t.Fatal(err)
		}
		first := make([]byte, 10)
		if _, err := io.ReadFull(claim.Body, first); err != nil {
			t.Error(err)
		}
		cancel()
		stuck := time.AfterFunc(10*time.Second, func() { panic("sourcetest: a body outlives its context") })
		rest, err := io.ReadAll(claim.Body)
		stuck.Stop()
		switch got := append(first, rest...); {
		case isLie(err) || errors.Is(err, fs.ErrNotExist):
			t.Errorf("%s: a context that ended is told as %v", b.form, err)
		case err == nil && !bytes.Equal(got, b.bytes), !bytes.HasPrefix(b.bytes, got):
			t.Errorf("%s: %d bytes, not those of the NAR, and error %v", b.form, len(got), err)
		}
		_ = claim.Body.Close()
	}
}

func (s *suite) concurrent(t *testing.T) {
	all := s.blobs(t)
	var group sync.WaitGroup
	defer group.Wait()
	for i := range 12 {
		group.Go(func() {
			b := all[i%len(all)]
			off := int64(i) * int64(len(b.bytes)) / 12
			if got, err := s.read(t.Context(), b, off); err != nil || !bytes.Equal(got, b.bytes[off:]) {
				t.Errorf("%s %s from %d, read by many: %d bytes, error %v", b.path.StorePath.Base(), b.form, off, len(got), err)
			}
		})
	}
}

// convict: a source that was convicted says no, or gives the right bytes from elsewhere.
func (s *suite) convict(t *testing.T) {
	for _, b := range s.blobs(t) {
		s.NARs.Convict(b.info, b.form, &verify.InvalidError{Reason: verify.ReasonHash, Err: errors.New("as the test says")})
		got, err := s.read(t.Context(), b, 0)
		if err == nil && !bytes.Equal(got, b.bytes) || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s %s after Convict: %d bytes, error %v", b.path.StorePath.Base(), b.form, len(got), err)
		}
	}
	s.NARs.Convict(s.Absent.Info(t, s.Key), nix.Raw, &verify.InvalidError{Reason: verify.ReasonHash, Err: errors.New("of what it has not")})
}
