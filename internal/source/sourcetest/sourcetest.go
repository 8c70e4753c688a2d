// Package sourcetest is one conformance suite for every source (internal/source), and sources
// in memory that pass it and misbehave on demand. It is for tests only.
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
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// Fixture is what a source under test is filled with.
type Fixture struct {
	Key    nixtest.Key // has signed everything but Secret; it is a share key
	Home   nixtest.Key // has signed Secret; it is trusted, but no share key
	Keys   *verify.Keys
	Paths  []nixtest.Path // what the source has, from a tiny one to some MiB
	Secret nixtest.Path   // a private path that the source has, if Public or Peers is tested
	Absent nixtest.Path   // what it lacks
}

// Subject is a source under test. What it does not have is left nil.
type Subject struct {
	Infos source.Infos
	NARs  source.NARs
	Peers source.Peers
	// Public answers for those on other machines.
	Public func(ctx context.Context, h nix.StoreHash) (*verify.Info, error)
	// Forms lists the forms of a NAR that are there as a whole, raw first.
	Forms func(nar nix.NarHash) []nix.Form
	// File returns the compressed file of a path that the source passes on as it is, and its
	// form. If nil, it has only raw NARs.
	File func(p nixtest.Path) (nix.Form, []byte)
	// NoRaw: it does not make a raw NAR of what it has.
	NoRaw bool
}

// Run holds sources against the contract. open fills a source with the fixture; it is called
// several times. What the source leaves behind is for the package's own leak check.
func Run(t *testing.T, open func(t *testing.T, f *Fixture) Subject) {
	key, home := nixtest.NewKey("sourcetest-1"), nixtest.NewKey("sourcetest-home-1")
	f := &Fixture{
		Key: key, Home: home, Keys: nixtest.Keys(t, key, home),
		Secret: nixtest.NewPath("secret", 1000), Absent: nixtest.NewPath("absent", 1000),
	}
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
		t.Run("Invalid", func(t *testing.T) {
			(&suite{Fixture: f, Subject: open(t, f)}).invalid(t)
		})
	}
	if s.Public != nil {
		t.Run("Public", s.public)
	}
	if s.Forms != nil {
		t.Run("Forms", s.forms)
	}
	if s.Peers != nil {
		t.Run("Session", s.session)
		t.Run("Private", s.private)
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

func isInvalid(err error) bool { return source.Invalid(err) != nil }

// wantAbsent expects an error that says no, and nothing else.
func wantAbsent(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, fs.ErrNotExist) || isInvalid(err) {
		t.Errorf("%s: error %v, want one that wraps fs.ErrNotExist and is not invalid", what, err)
	}
}

func (s *suite) info(t *testing.T) {
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
		if _, err := s.Infos.Info(gone, p.Hash()); err != nil && (isInvalid(err) || p.Hash() != s.Absent.Hash() && errors.Is(err, fs.ErrNotExist)) {
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
	for _, b := range s.blobs(t) {
		size := int64(len(b.bytes))
		for _, off := range []int64{0, 1, size / 2, size - 1, size} {
			got, err := s.read(t.Context(), b, off)
			switch {
			case err != nil && off == size && !isInvalid(err):
				// There is nothing to give: an error is as good as an empty body.
			case err != nil:
				t.Errorf("%s %s from %d: %v", b.path.StorePath.Base(), b.form, off, err)
			case !bytes.Equal(got, b.bytes[off:]):
				t.Errorf("%s %s from %d: %d wrong bytes", b.path.StorePath.Base(), b.form, off, len(got))
			}
		}
		got, err := s.read(t.Context(), b, size+1)
		if isInvalid(err) || err == nil && len(got) > 0 {
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
		case isInvalid(err) || errors.Is(err, fs.ErrNotExist):
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

// invalid: a source that was told of wrong bytes says no, or gives the right ones from elsewhere.
func (s *suite) invalid(t *testing.T) {
	wrong := func(text string) error {
		return &verify.InvalidError{Reason: verify.ReasonHash, Err: errors.New(text)}
	}
	for _, b := range s.blobs(t) {
		s.NARs.Invalid(b.info, b.form, wrong("as the test says"))
		got, err := s.read(t.Context(), b, 0)
		if err == nil && !bytes.Equal(got, b.bytes) || err != nil && !source.Absent(err) {
			t.Errorf("%s %s after Invalid: %d bytes, error %v", b.path.StorePath.Base(), b.form, len(got), err)
		}
	}
	s.NARs.Invalid(s.Absent.Info(t, s.Key), nix.Raw, wrong("of what it lacks"))
}

// public: private paths do not exist for others.
func (s *suite) public(t *testing.T) {
	for _, p := range s.Paths {
		if info, err := s.Public(t.Context(), p.Hash()); err != nil || !info.Equal(p.Info(t, s.Key)) {
			t.Errorf("Public of %s: %v", p.StorePath.Base(), err)
		}
	}
	for _, p := range []nixtest.Path{s.Secret, s.Absent} {
		info, err := s.Public(t.Context(), p.Hash())
		wantAbsent(t, "Public of "+p.StorePath.Base(), err)
		if info != nil {
			t.Error("an answer along with an error")
		}
	}
}

func (s *suite) forms(t *testing.T) {
	for _, b := range s.blobs(t) {
		forms := s.Forms(b.path.NarHash())
		if !slices.Contains(forms, b.form) && (s.File == nil || !b.form.IsRaw()) {
			t.Errorf("%s: %v has no %s", b.path.StorePath.Base(), forms, b.form)
		}
		if i := slices.Index(forms, nix.Raw); i > 0 {
			t.Errorf("%s: raw is not the first of %v", b.path.StorePath.Base(), forms)
		}
	}
	if forms := s.Forms(s.Absent.NarHash()); len(forms) != 0 {
		t.Errorf("forms of what is absent: %v", forms)
	}
}

// pull reads a NAR through a session of peers.
func pull(ctx context.Context, s source.Session, off int64) ([]byte, nix.Form, error) {
	var got []byte
	var form nix.Form
	for {
		turn, err := s.Next(ctx, off+int64(len(got)))
		if err != nil {
			return got, form, err
		}
		if len(got) > 0 && turn.Stream.Form != form {
			return got, form, errors.New("another form than that of the first turn")
		}
		form = turn.Stream.Form
		b, err := io.ReadAll(turn.Stream.Body)
		_ = turn.Stream.Body.Close()
		if got = append(got, b...); err == nil && off+int64(len(got)) == turn.Stream.Size {
			return got, form, nil
		}
	}
}

func (s *suite) session(t *testing.T) {
	for _, b := range s.blobs(t) {
		size := int64(len(b.bytes))
		for _, off := range []int64{0, size / 2} {
			want := source.Want{Info: b.info, Forms: []source.Sized{{Form: b.form, Size: size}}}
			session := s.Peers.Begin(t.Context(), want)
			if session == nil {
				t.Fatalf("%s: no session", b.path.StorePath.Base())
			}
			got, form, err := pull(t.Context(), session, off)
			// A peer on a busy machine may be late, and is asked again.
			for again := 0; again < 10 && err != nil && !isInvalid(err) && !source.Absent(err); again++ {
				session.End(t.Context(), source.GaveUp)
				session = s.Peers.Begin(t.Context(), want)
				got, form, err = pull(t.Context(), session, off)
			}
			if err != nil || form != b.form || !bytes.Equal(got, b.bytes[off:]) {
				t.Errorf("%s %s from %d: %d bytes as %s, error %v", b.path.StorePath.Base(), b.form, off, len(got), form, err)
			}
			if n := session.Peers(); n < 1 {
				t.Errorf("%d peers sent it", n)
			}
			session.Progress(size, size)
			session.End(t.Context(), source.Correct)
		}
	}
	raw := func(info *verify.Info) []source.Sized { return []source.Sized{{Form: nix.Raw, Size: info.NarSize()}} }
	absent := s.Absent.Info(t, s.Key)
	if session := s.Peers.Begin(t.Context(), source.Want{Info: absent, Forms: raw(absent)}); session != nil {
		_, err := session.Next(t.Context(), 0)
		wantAbsent(t, "a session for what no peer has", err)
		session.End(t.Context(), source.GaveUp)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	info := s.proof(t, s.Paths[0])
	if session := s.Peers.Begin(gone, source.Want{Info: info, Forms: raw(info), Coordinate: true}); session != nil {
		if turn, err := session.Next(gone, 0); err == nil {
			_ = turn.Stream.Body.Close()
		} else if isInvalid(err) {
			t.Errorf("a context that ended is told as %v", err)
		}
		session.End(gone, source.GaveUp)
	}
}

// private: nobody is asked about what no share key signed.
func (s *suite) private(t *testing.T) {
	info := s.Secret.Info(t, s.Home)
	if session := s.Peers.Begin(t.Context(), source.Want{Info: info, Forms: []source.Sized{{Form: nix.Raw, Size: info.NarSize()}}, Coordinate: true}); session != nil {
		t.Error("a session for a private path")
		session.End(t.Context(), source.GaveUp)
	}
	if _, err := s.Peers.Info(t.Context(), s.Secret.Hash()); err == nil {
		t.Error("a narinfo of a private path from a peer")
	}
}
