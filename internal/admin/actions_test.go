package admin

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// post sends JSON as a command line would.
func post(t *testing.T, s string, url, body string) (int, string) {
	t.Helper()
	res, err := http.Post(s+url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b := make([]byte, 4096)
	n, _ := res.Body.Read(b)
	return res.StatusCode, string(b[:n])
}

func TestPrefetch(t *testing.T) {
	absent := fmt.Errorf("nobody: %w", fs.ErrNotExist)
	for _, tt := range []struct {
		name, body string
		err        error
		status     int
		want       string
	}{
		{"fetched", `{"store_hash":"` + hash + `"}`, nil, 200, `"at_hand": "cache"`},
		{"absent", `{"store_hash":"` + hash + `"}`, absent, 404, "no source has it"},
		{"trouble", `{"store_hash":"` + hash + `"}`, errors.New("the disk is full"), 502, "the disk is full"},
		{"no hash", `{"store_hash":"x"}`, nil, 400, "not a store hash"},
		{"unknown field", `{"hash":"x"}`, nil, 400, "unknown field"},
		{"no JSON", `x`, nil, 400, "not understood"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := start(t, &fake{prefetch: func(h nix.StoreHash, dry bool) (Prefetched, error) {
				if h.String() != hash || dry {
					t.Errorf("asked for %s, dry %v", h, dry)
				}
				return Prefetched{AtHand: "cache"}, tt.err
			}})
			status, body := post(t, s.URL, "/api/v1/prefetch", tt.body)
			if status != tt.status || !strings.Contains(body, tt.want) {
				t.Errorf("%d %s", status, body)
			}
			http.DefaultClient.CloseIdleConnections()
		})
	}
}

func TestTrim(t *testing.T) {
	f := &fake{}
	s, _ := start(t, f)
	defer http.DefaultClient.CloseIdleConnections()
	if status, body := post(t, s.URL, "/api/v1/gc", `{"max_bytes":-1}`); status != 200 || !strings.Contains(body, `"kept": 3`) {
		t.Errorf("%d %s", status, body)
	}
	if !slices.Equal(f.trimmed, []int64{-1}) {
		t.Errorf("trimmed to %v", f.trimmed)
	}
	if res, _ := do(t, s, http.MethodGet, "/api/v1/gc"); res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", res.StatusCode)
	}
	if len(f.trimmed) != 1 {
		t.Error("GET changed something")
	}
}
