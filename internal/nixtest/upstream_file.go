package nixtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
)

// Compress returns a NAR as a file. For bzip2 and compress it needs the program of this name and
// skips the test without it; xz is a stored container where there is no xz program.
func Compress(t testing.TB, c nix.Compression, nar []byte) Compressed {
	t.Helper()
	var out bytes.Buffer
	var err error
	switch c {
	case nix.Zstd:
		w, werr := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
		if werr != nil {
			t.Fatal(werr)
		}
		_, err = w.Write(nar)
		err = errors.Join(err, w.Close())
	case nix.Gzip:
		w := gzip.NewWriter(&out)
		_, err = w.Write(nar)
		err = errors.Join(err, w.Close())
	case nix.Brotli:
		w := brotli.NewWriterLevel(&out, 1)
		_, err = w.Write(nar)
		err = errors.Join(err, w.Close())
	case nix.XZ:
		if _, lerr := exec.LookPath("xz"); lerr != nil {
			w, werr := compress.NewStored(c, &out, int64(len(nar)))
			if werr != nil {
				t.Fatal(werr)
			}
			_, err = w.Write(nar)
			err = errors.Join(err, w.Close())
			break
		}
		err = runFilter(t, &out, nar, "xz", "-1")
	case nix.Bzip2:
		if _, lerr := exec.LookPath("bzip2"); lerr != nil {
			t.Skip("no bzip2 program")
		}
		err = runFilter(t, &out, nar, "bzip2", "-1")
	case nix.LZ4:
		w := lz4.NewWriter(&out)
		_, err = w.Write(nar)
		err = errors.Join(err, w.Close())
	case nix.LZMA:
		err = writeLZMA(&out, nar)
	case nix.Lzip:
		err = writeLzip(&out, nar)
	case nix.LZW:
		if _, lerr := exec.LookPath("compress"); lerr != nil {
			t.Skip("no compress program")
		}
		err = runFilter(t, &out, nar, "compress", "-f")
	default:
		out.Write(nar)
	}
	if err != nil {
		t.Fatal(err)
	}
	return Compressed{c, out.Bytes()}
}

func writeLZMA(out io.Writer, nar []byte) error {
	w, err := lzma.WriterConfig{EOSMarker: true}.NewWriter(out) // with the properties that lzip wants
	if err != nil {
		return err
	}
	_, err = w.Write(nar)
	return errors.Join(err, w.Close())
}

// writeLzip puts the stream of an LZMA file into an lzip member.
func writeLzip(out *bytes.Buffer, nar []byte) error {
	var file bytes.Buffer
	if err := writeLZMA(&file, nar); err != nil {
		return err
	}
	out.WriteString("LZIP\x01\x17") // a dictionary of 8 MiB
	out.Write(file.Bytes()[lzma.HeaderLen:])
	b := binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(nar))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(nar)))
	out.Write(binary.LittleEndian.AppendUint64(b, uint64(out.Len()+len(b)+8)))
	return nil
}

func runFilter(t testing.TB, out *bytes.Buffer, in []byte, name string, args ...string) error {
	cmd := exec.CommandContext(t.Context(), name, append(args, "-c")...)
	cmd.Stdin, cmd.Stdout = bytes.NewReader(in), out
	return cmd.Run()
}

// WriteCache writes the cache that cfg describes as files of a directory, for file:// URLs.
func WriteCache(t testing.TB, dir string, cfg UpstreamConfig) {
	t.Helper()
	write := func(name string, b []byte) {
		at := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("nix-cache-info", cfg.cacheInfo())
	for _, p := range cfg.Paths {
		n, file := cfg.entry(t, p)
		write(p.Hash().String()+".narinfo", n.AppendText(nil))
		write(n.URL, file)
	}
}
