package update

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
)

// TestWhileAwake: what is sent while files are decoded is nothing to whoever decodes the delta.
func TestWhileAwake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		err := whileAwake(&out, func() error { time.Sleep(10*awakeEvery + awakeEvery/2); return nil })
		if err != nil || out.Len() != 10*len(skippable) {
			t.Fatalf("%d bytes, %v", out.Len(), err)
		}
		z := compress.NewZstdDelta(&out)
		_, _ = z.Write([]byte("hello"))
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		z.Release()
		r, err := compress.NewStreamReader(nix.Zstd, &out)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := io.ReadAll(r); string(got) != "hello" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// TestWhileAwakeFails: an error ends it, that of the work before that of the other side.
func TestWhileAwakeFails(t *testing.T) {
	errWork, errLost := errors.New("work"), errors.New("lost")
	synctest.Test(t, func(t *testing.T) {
		lost := writerFunc(func([]byte) (int, error) { return 0, errLost })
		for _, work := range []error{errWork, nil} {
			err := whileAwake(lost, func() error { time.Sleep(3 * awakeEvery); return work })
			if want := map[bool]error{true: errWork, false: errLost}[work != nil]; !errors.Is(err, want) {
				t.Errorf("%v", err)
			}
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestPays: files are decoded only where that is sooner.
func TestPays(t *testing.T) {
	for _, tt := range []struct {
		from  nix.Compression
		size  int64
		plain time.Duration
		want  bool
	}{
		{nix.None, 1 << 40, 0, true},
		{nix.XZ, 40e6, 2 * time.Second, true},
		{nix.XZ, 40e6, 1900 * time.Millisecond, false},
		{nix.XZ, 40e6 * 9, time.Hour, false},
		{nix.Zstd, 40e6 * 9, 2 * time.Second, true},
		{nix.Zstd, 1000, 0, false},
		{nix.Bzip2, 1000, time.Hour, false},
	} {
		if got := pays(tt.plain, unpacking(tt.from, tt.size)); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}
