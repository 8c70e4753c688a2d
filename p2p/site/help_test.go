package site

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

func writeFile(name, text string) error { return os.WriteFile(name, []byte(text+"\n"), 0o600) }

func manetArgs(m ma.Multiaddr) (network, addr string, err error) { return manet.DialArgs(m) }

// readUntil reads from c until ctx ends.
func readUntil(ctx context.Context, c net.Conn) io.Reader {
	context.AfterFunc(ctx, func() { _ = c.Close() })
	return c
}

func newReader(b []byte) io.Reader { return bytes.NewReader(b) }
