package transfer

import (
	"errors"
	"io"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/narcache"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// sink takes one stream, to which several sources may contribute, and checks it as a whole. A
// *verify.Guard is one.
type sink interface {
	// Fill reads src to its end, as verify.Guard does.
	Fill(src io.Reader) error
	Offset() int64
	// End checks the stream, or ends it with err, and returns the verdict.
	End(err error) error
}

// sinkError is an error of the receiving side: another source does not help.
type sinkError struct{ err error }

func (e *sinkError) Error() string { return e.err.Error() }
func (e *sinkError) Unwrap() error { return e.err }

// spool is a sink in the cache's file.
type spool struct {
	*narcache.Download
	d    *download
	sums *verify.BlockSums
	buf  []byte
	free func() // gives buf back
	// misnamed: it was committed although its FileHash is wrong.
	misnamed bool
}

// maxEmptyReads bounds reads that give neither bytes nor an error, which io.Reader allows.
const maxEmptyReads = 100

func (s *spool) Offset() int64 { return s.sums.Offset() }

func (s *spool) Fill(src io.Reader) error {
	for empty := 0; empty < maxEmptyReads; empty++ {
		n, err := src.Read(s.buf)
		if n > 0 {
			empty = 0
			if _, err := s.sums.Write(s.buf[:n]); err != nil {
				return err
			}
			if _, err := s.Write(s.buf[:n]); err != nil {
				return &sinkError{errors.Join(errSinkFailed, err)}
			}
			s.d.flow.Add(int64(n))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// End commits proven bytes, and aborts all others. A file whose hash is wrong may still hold
// the right NAR, since nobody signed the FileHash. Then the response is completed, but the
// FileHash is not used again.
func (s *spool) End(err error) error {
	defer s.free()
	if err == nil {
		err = s.sums.Check()
		if source.Invalid(err) != nil && !s.Form().IsRaw() && s.holdsNAR() {
			s.d.s.log.Warn("FileHash of an upstream is wrong, its NAR is right",
				"path", s.d.info.StorePath().Base(), "form", s.Form().String())
			s.d.s.cfg.Resolver.Distrust(s.d.info, s.Form())
			s.misnamed, err = true, nil
		}
	}
	if err != nil {
		s.Abort(err)
		return err
	}
	if err := s.Commit(); err != nil {
		s.Abort(err)
		return &sinkError{errors.Join(errSinkFailed, err)}
	}
	return nil
}

// holdsNAR decodes what was written and reports whether it is the signed NAR.
func (s *spool) holdsNAR() bool {
	file := s.ReadBack()
	defer file.Close()
	dec, err := compress.NewReader(s.Form().Compression, file)
	if err != nil {
		return false
	}
	defer dec.Close()
	proof := verify.NewProof(s.d.info.Digest(nix.Raw, 0))
	if _, err := io.CopyBuffer(struct{ io.Writer }{proof}, struct{ io.Reader }{dec}, s.buf); err != nil {
		return false
	}
	return proof.Check() == nil
}
