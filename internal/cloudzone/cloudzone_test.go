package cloudzone

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestFind: each provider is understood, in its own way of asking, and nothing else is.
func TestFind(t *testing.T) {
	answers := func(wanted map[string]string, header, value, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			text, ok := wanted[r.Method+" "+r.URL.RequestURI()]
			if !ok || header != "" && r.Header.Get(header) != value && r.Method == http.MethodGet {
				http.Error(w, "no", http.StatusNotFound)
				return
			}
			_, _ = w.Write([]byte(text + body))
		}
	}
	for name, c := range map[string]struct {
		service http.HandlerFunc
		want    string
	}{
		"AWS": {answers(map[string]string{
			"PUT /latest/api/token": "secret", "GET /latest/meta-data/placement/availability-zone-id": "euc1-az2",
		}, "X-Aws-Ec2-Metadata-Token", "secret", ""), "euc1-az2"},
		"Google": {answers(map[string]string{
			"GET /computeMetadata/v1/instance/zone": "projects/123/zones/europe-west3-b\n",
		}, "Metadata-Flavor", "Google", ""), "europe-west3-b"},
		"Azure": {answers(map[string]string{
			"GET /metadata/instance/compute?api-version=2021-02-01": `{"location":"westeurope","zone":"2","name":"x"}`,
		}, "Metadata", "true", ""), "westeurope-2"},
		"Azure without zones": {answers(map[string]string{
			"GET /metadata/instance/compute?api-version=2021-02-01": `{"location":"westeurope","zone":""}`,
		}, "Metadata", "true", ""), "westeurope"},
		"Hetzner":   {answers(map[string]string{"GET /hetzner/v1/metadata/availability-zone": "fsn1-dc14"}, "", "", ""), "fsn1-dc14"},
		"OpenStack": {answers(map[string]string{"GET /latest/meta-data/placement/availability-zone": "nova"}, "", "", ""), "nova"},
		"nothing":   {answers(nil, "", "", ""), ""},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/latest/meta-data/placement/availability-zone/x", http.StatusFound)
		}, ""},
		"Azure with nonsense": {answers(map[string]string{"GET /metadata/instance/compute?api-version=2021-02-01": "<html>"}, "", "", ""), ""},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(c.service)
			defer srv.Close()
			got, err := Find(t.Context(), srv.URL)
			if got != c.want || (err == nil) != (c.want != "") {
				t.Errorf("%q, %v, want %q", got, err, c.want)
			}
		})
	}
}

// TestNobody: where nobody answers, one question is enough; what never ends is cut.
func TestNobody(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	_, err := Find(t.Context(), srv.URL)
	if err == nil || strings.Contains(err.Error(), "Hetzner") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Find(ctx, srv.URL); err == nil {
		t.Error("no error")
	}
}
