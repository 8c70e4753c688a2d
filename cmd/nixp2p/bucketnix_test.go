package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/objectstore"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// TestBucketPlainNix: what nixp2p wrote into a bucket is a binary cache for any Nix, over plain HTTP and, where the
// Nix knows object stores, as s3://, without nixp2p. The closure has two paths with the same NAR. The bucket is
// public: Debian's Nix signs no requests. It is skipped without versitygw or a Nix.
func TestBucketPlainNix(t *testing.T) {
	c := realnix.FindCorpus(t, realnix.Params{})
	store := objectstore.Start(t, "nix")
	d := startDaemonWith(t, bucketEnv, append(corpusArgs(c, serveFiles(t, c.Caches["xz"]).URL, t.TempDir()), "--bucket", store.URL("nix", ""))...)
	if _, err := realnix.Find(t).TempClient(t, c.PublicKey).Copy(t.Context(), d.url, c.Top); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(5 * time.Minute); d.metric("nixp2p_bucket_writes_total", `"written"`) < float64(len(c.Paths)); <-time.After(50 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%v of %d paths written", d.metric("nixp2p_bucket_writes_total"), len(c.Paths))
		}
	}
	d.stop()
	views := map[string]string{
		"http": serveFiles(t, filepath.Join(store.Dir, "nix")).URL,
		"s3":   "s3://nix?scheme=http&region=us-east-1&endpoint=" + strings.TrimPrefix(serveFiles(t, store.Dir).URL, "http://"),
	}
	eachNix(t, func(t *testing.T, nix *realnix.Nix) {
		for name, view := range views {
			t.Run(name, func(t *testing.T) {
				client := nix.TempClient(t, c.PublicKey)
				if res, err := client.Run(t.Context(), "nix", "copy", "--from", view, c.Top); err != nil {
					for _, unknown := range []string{"don't know how to open Nix store", "unsupported", "not supported", "cannot open"} {
						if name == "s3" && strings.Contains(res.Stderr, unknown) {
							t.Skipf("this Nix does not know object stores: %s", res.Stderr)
						}
					}
					t.Fatal(err)
				}
				if res, err := client.Run(t.Context(), "nix", "store", "verify", "--all", "--sigs-needed", "1"); err != nil {
					t.Errorf("verify: %v\n%s", err, res.Stderr)
				}
				check(t, client, c)
			})
		}
	})
}
