package admin

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestTransfers: of many the largest are shown, and all are counted.
func TestTransfers(t *testing.T) {
	f := &fake{}
	for i := range 100 {
		f.state.Transfers = append(f.state.Transfers, Transfer{NarHash: fmt.Sprint(i), Size: int64(i * 7 % 100)})
	}
	s, m := start(t, f)
	m.NarinfoRequests.WithLabelValues("none", "timeout").Add(3)
	m.NarinfoRequests.WithLabelValues("peer", "hit").Add(2)
	m.PeerSentBytes.Add(5)
	m.PeerReceivedBytes.Add(6)
	m.UpstreamBytes.Add(7)
	var got Status
	_, body := do(t, s, "GET", "/api/v1/status")
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Transfers) != maxTransfers || got.TransfersTotal != 100 {
		t.Errorf("%d transfers of %d", len(got.Transfers), got.TransfersTotal)
	}
	for i, x := range got.Transfers {
		if x.Size != int64(99-i) {
			t.Fatalf("transfer %d has %d bytes", i, x.Size)
		}
	}
	if got.Requests["none"] != (Results{Timeout: 3}) || got.Requests["peer"] != (Results{Hit: 2}) || len(got.Requests) != 6 {
		t.Errorf("requests %v", got.Requests)
	}
	if got.PeerSentBytes != 5 || got.PeerReceivedBytes != 6 || got.UpstreamBytes != 7 {
		t.Errorf("%+v", got)
	}
	if d := time.Since(got.Since).Seconds() - got.UptimeSeconds; d < -1 || d > 5 {
		t.Errorf("since %v, up %v s", got.Since, got.UptimeSeconds)
	}
}

// TestJoined: a download and the responses that follow it are one transfer; what the node lists
// stays as it is.
func TestJoined(t *testing.T) {
	list := []Transfer{
		{NarHash: "a", Direction: Nix, Source: "cache"}, {NarHash: "a", Direction: In, Source: "peer"}, {NarHash: "a", Direction: Nix, Source: "peer"},
		{NarHash: "a", Direction: Out}, {NarHash: "b", Direction: Nix}, {NarHash: "c", Direction: In},
	}
	want := []Transfer{{NarHash: "a", Direction: In, Source: "peer", ToNix: true}, {NarHash: "a", Direction: Out}, {NarHash: "b", Direction: Nix}, {NarHash: "c", Direction: In}}
	if got := joined(list); !reflect.DeepEqual(got, want) || list[0].Direction != Nix || list[1].ToNix {
		t.Errorf("%+v", got)
	}
}

// TestNixUse: whether Nix uses the node is said in one sentence.
func TestNixUse(t *testing.T) {
	now := time.Date(2026, 11, 22, 15, 4, 5, 0, time.Local)
	const url, conf = "http://127.0.0.1:7654", "/etc/nix/nix.conf"
	for want, n := range map[string]NixUse{
		"Nix last asked this node at 15:04:05":                          {URL: url, Conf: conf, Asked: now},
		conf + " lists this node; Nix has not asked it since the start": {URL: url, Conf: conf, Listed: true},
		"Nix does not use this node: " + conf + " does not list " + url: {URL: url, Conf: conf},
		"Nix cannot ask a node that does not listen on an address":      {Conf: conf},
	} {
		if got := n.Text(now); !strings.HasPrefix(got, want) || n.Used() != (n.Listed || !n.Asked.IsZero()) {
			t.Errorf("%+v: %s", n, got)
		}
	}
}

// TestNames: fields keep their names, and lists are lists when they are empty.
func TestNames(t *testing.T) {
	at := time.Date(2026, 11, 22, 15, 0, 0, 0, time.UTC)
	f := &fake{history: History{Hours: []Bucket{{Start: at, Bytes: Bytes{Peer: 1}, Saved: 1}}, Days: []Bucket{}}}
	s, _ := start(t, f)
	keys := func(path string) map[string]any {
		t.Helper()
		var m map[string]any
		_, body := do(t, s, "GET", path)
		if err := json.Unmarshal([]byte(body), &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	if got, want := keys("/api/v1/history"), map[string]any{
		"hours": []any{map[string]any{"start": "2026-11-22T15:00:00Z", "store": 0.0, "cache": 0.0, "peer": 1.0, "upstream": 0.0, "saved": 1.0, "estimated": 0.0}},
		"days":  []any{},
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("history %v", got)
	}
	got := keys("/api/v1/status")
	for _, list := range []string{"transfers", "failures", "upstreams", "degraded", "conditions"} {
		if l, ok := got[list].([]any); !ok || len(l) != 0 {
			t.Errorf("%s is %v", list, got[list])
		}
	}
	for _, key := range []string{"since", "saved", "requests", "transfers_total", "upstream_bytes", "peer_received_bytes", "peer_sent_bytes"} {
		if got[key] == nil {
			t.Errorf("%s is missing", key)
		}
	}
	f.state.Transfers = []Transfer{{}}
	f.state.Failures = []Failure{{}}
	got = keys("/api/v1/status")
	for list, want := range map[string][]string{
		"transfers": {"direction", "store_path", "nar_hash", "form", "source", "peer", "bytes", "size", "bytes_per_second", "started", "readers"},
		"failures":  {"at", "times", "what", "source", "store_path", "error"},
	} {
		one := got[list].([]any)[0].(map[string]any)
		for _, key := range want {
			if _, ok := one[key]; !ok || len(one) != len(want) {
				t.Errorf("%s: %v, want %v", list, one, want)
			}
		}
	}
}
