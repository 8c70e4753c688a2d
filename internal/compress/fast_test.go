package compress

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
)

func TestZstdWriter(t *testing.T) {
	text := []byte(strings.Repeat("compresses well ", 100_000))
	for range 2 { // the second with the memory of the first
		var b bytes.Buffer
		z := NewZstdWriter(&b)
		for part := text; len(part) > 0; part = part[min(len(part), 70_000):] {
			if _, err := z.Write(part[:min(len(part), 70_000)]); err != nil {
				t.Fatal(err)
			}
			if err := z.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		z.Release()
		if b.Len() > len(text)/10 {
			t.Errorf("%d bytes of %d", b.Len(), len(text))
		}
		r, err := NewReader(nix.Zstd, &b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, text) {
			t.Errorf("%d bytes come back, %v", len(got), err)
		}
		_ = r.Close()
	}
}

// TestZstdWriterFlush: what was flushed can be read before the end.
func TestZstdWriterFlush(t *testing.T) {
	pr, pw := io.Pipe()
	defer pr.Close()
	z := NewZstdWriter(pw)
	defer z.Release()
	done := make(chan error, 1)
	go func() {
		_, err := z.Write([]byte("hello"))
		if err == nil {
			err = z.Flush()
		}
		done <- err
	}()
	r, err := NewReader(nix.Zstd, pr)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b := make([]byte, 5)
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	_ = pr.Close()
}
