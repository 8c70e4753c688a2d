package main

import (
	"encoding/json"
	"fmt"
	"html"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// TestSameNumbers: two nodes fetch from an upstream, from each other and from their caches;
// then each number is the same on the page, in the API, on the command line and in the metrics.
func TestSameNumbers(t *testing.T) {
	t.Parallel()
	key := nixtest.NewKey("trusted-1")
	var paths []nixtest.Path
	for i := range 4 {
		paths = append(paths, nixtest.NewPath(fmt.Sprintf("number-%d", i), 300_000+70_000*i))
	}
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: paths, Keys: []nixtest.Key{key}})
	s := newSite(t, 2, "--upstream", up.URL(), "--trusted-public-key", key.Public(), "--share-key", key.Name)
	a, b := s.nodes[0], s.nodes[1]
	for _, get := range []struct {
		from *process
		path nixtest.Path
	}{{a, paths[0]}, {a, paths[1]}, {a, paths[0]}, {b, paths[0]}, {b, paths[1]}, {b, paths[2]}, {b, paths[2]}, {a, paths[3]}} {
		(&load{url: get.from.url, paths: paths}).get(t.Context(), t, get.path, 0)
	}
	absent := nixtest.NewPath("absent", 1)
	for _, d := range s.nodes {
		if status, _ := d.get(d.url + "/" + absent.Hash().String() + ".narinfo"); status != 404 {
			t.Errorf("a path that nobody has: %d", status)
		}
		// What is counted when a connection ends may come a moment later.
		var wrong []string
		tick := time.NewTicker(100 * time.Millisecond)
		for range 50 {
			if wrong = differences(t, d); len(wrong) == 0 {
				break
			}
			<-tick.C
		}
		tick.Stop()
		for _, w := range wrong {
			t.Error(w)
		}
	}
	// The upstream's own log has the last word.
	sent := up.Bytes(nixtest.NarFile) + up.Bytes(nixtest.NarInfo) + up.Bytes(nixtest.CacheInfo)
	if counted := statusOf(t, a).UpstreamBytes + statusOf(t, b).UpstreamBytes; counted != sent {
		t.Errorf("the upstream sent %d bytes, the nodes count %d", sent, counted)
	}
	// Zeros everywhere would be the same, too.
	st := statusOf(t, b)
	if st.Bytes.Cache == 0 || st.Bytes.Upstream == 0 || st.SavedBytes == 0 || st.Saved.Total == 0 || st.PeerReceivedBytes == 0 || st.UpstreamBytes == 0 || st.Peers != 1 || st.Requests["none"].Miss == 0 {
		t.Errorf("too little happened: %+v", st)
	}
}

func statusOf(t *testing.T, d *process) (s admin.Status) {
	t.Helper()
	_, text := d.get(d.admin + "/api/v1/status")
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// numbersOf are the numbers of a status by their names on the page, with the metric that has
// them, if one does.
func numbersOf(s admin.Status) map[string]struct {
	n      int64
	metric []string
} {
	type number = struct {
		n      int64
		metric []string
	}
	all := map[string]number{
		"saved-today": {s.Saved.Today, nil}, "saved-week": {s.Saved.Week, nil}, "saved-total": {s.Saved.Total, nil},
		"saved-start":     {s.SavedBytes, []string{"nixp2p_saved_bytes_total"}},
		"shared":          {s.StorePathsShared, []string{"nixp2p_store_paths_shared"}},
		"peers":           {int64(s.Peers), []string{"nixp2p_peers"}},
		"upstream-bytes":  {s.UpstreamBytes, []string{"nixp2p_upstream_bytes_total"}},
		"peer-received":   {s.PeerReceivedBytes, []string{"nixp2p_peer_received_bytes_total"}},
		"peer-sent":       {s.PeerSentBytes, []string{"nixp2p_peer_sent_bytes_total"}},
		"cache-bytes":     {s.Cache.Bytes, []string{"nixp2p_cache_bytes"}},
		"transfers-total": {int64(s.TransfersTotal), nil},
	}
	for source, n := range map[string]int64{"store": s.Unpacked.Store, "cache": s.Unpacked.Cache, "peer": s.Unpacked.Peer, "upstream": s.Unpacked.Upstream} {
		all["bytes-"+source] = number{n, []string{"nixp2p_nar_unpacked_bytes_total", `source="` + source + `"`}}
	}
	for source, r := range s.Requests {
		for result, n := range map[string]int64{"hit": r.Hit, "miss": r.Miss, "timeout": r.Timeout} {
			all["req-"+source+"-"+result] = number{n, []string{"nixp2p_narinfo_requests_total", `source="` + source + `"`, `result="` + result + `"`}}
		}
	}
	return all
}

var namedData = regexp.MustCompile(`<data (?:class="[^"]*" )?id="([^"]+)" value="(-?\d+)"`)

// differences says what is not the same.
func differences(t *testing.T, d *process) (wrong []string) {
	t.Helper()
	s := statusOf(t, d)
	_, page := d.get(d.admin + "/")
	shown := map[string]int64{}
	for _, m := range namedData.FindAllStringSubmatch(page, -1) {
		shown[m[1]], _ = strconv.ParseInt(m[2], 10, 64)
	}
	wanted := numbersOf(s)
	for name, w := range wanted {
		if n, ok := shown[name]; !ok || n != w.n {
			wrong = append(wrong, fmt.Sprintf("%s: the page says %d (%v), the API %d", name, n, ok, w.n))
		}
		if w.metric != nil {
			if n := int64(d.metric(w.metric[0], w.metric[1:]...)); n != w.n {
				wrong = append(wrong, fmt.Sprintf("%s: %v is %d, the API says %d", name, w.metric, n, w.n))
			}
		}
	}
	for name := range shown {
		if _, ok := wanted[name]; !ok {
			wrong = append(wrong, name+": on the page alone")
		}
	}
	return append(append(wrong, historyDiffers(t, d, page, s)...), printedDiffers(t, d, page, s)...)
}

// historyDiffers compares the pictures with the counters: all of it is of the last hours.
func historyDiffers(t *testing.T, d *process, page string, s admin.Status) (wrong []string) {
	t.Helper()
	var h admin.History
	_, text := d.get(d.admin + "/api/v1/history")
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		t.Fatal(err)
	}
	for name, list := range map[string][]admin.Bucket{"hours": h.Hours, "days": h.Days} {
		var sum admin.Bucket
		var estimated int64
		for _, b := range list {
			sum.Store, sum.Cache, sum.Peer, sum.Upstream, sum.Saved = sum.Store+b.Store, sum.Cache+b.Cache, sum.Peer+b.Peer, sum.Upstream+b.Upstream, sum.Saved+b.Saved
			estimated += b.Estimated
		}
		if sum.Bytes != s.Unpacked || sum.Saved != s.SavedBytes || estimated != s.SavedEstimated {
			wrong = append(wrong, fmt.Sprintf("%s: %+v in all, the counters say %+v and %d saved", name, sum, s.Unpacked, s.SavedBytes))
		}
		last := list[len(list)-1]
		cells := ""
		for _, n := range []int64{last.Store, last.Cache, last.Peer, last.Upstream} {
			cells += `<td class="n">` + humanSize(n) + "</td>"
		}
		cells += `<td class="n">` + strings.TrimPrefix(savedText(admin.Saved{Spans: admin.Spans{Total: last.Saved}, Estimated: admin.Spans{Total: last.Estimated}}), "today 0 B, in 7 days 0 B, in all ") + "</td>"
		if !strings.Contains(page, cells) {
			wrong = append(wrong, name+": the page's table lacks "+cells)
		}
	}
	if s.Saved.Total != s.SavedBytes || s.Saved.Week != s.SavedBytes {
		wrong = append(wrong, fmt.Sprintf("saved since the start %d, in all %d, this week %d", s.SavedBytes, s.Saved.Total, s.Saved.Week))
	}
	return wrong
}

// printedDiffers compares what the commands print.
func printedDiffers(t *testing.T, d *process, page string, s admin.Status) (wrong []string) {
	t.Helper()
	run := func(args ...string) string {
		out, stderr, code := command(t, append(args, "--config", os.DevNull, "--admin-listen", strings.TrimPrefix(d.admin, "http://"))...)
		if code != 0 {
			t.Fatalf("%v: %d\n%s", args, code, stderr)
		}
		return out
	}
	var printed admin.Status
	if err := json.Unmarshal([]byte(run("status", "--json")), &printed); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(numbersOf(printed), numbersOf(s)) {
		wrong = append(wrong, fmt.Sprintf("status --json says %+v, the API %+v", printed, s))
	}
	text := run("status")
	for _, want := range []string{
		savedText(s.Saved),
		fmt.Sprintf("received %s, sent %s", humanSize(s.PeerReceivedBytes), humanSize(s.PeerSentBytes)),
		"received " + humanSize(s.UpstreamBytes),
		fmt.Sprintf("%s of %s", humanSize(s.Cache.Bytes), humanSize(s.Cache.Limit)),
		fmt.Sprintf("%d store paths", s.StorePathsShared),
	} {
		if !strings.Contains(text, want) {
			wrong = append(wrong, fmt.Sprintf("status lacks %q:\n%s", want, text))
		}
	}
	for source, n := range map[string]int64{"store": s.Unpacked.Store, "cache": s.Unpacked.Cache, "peer": s.Unpacked.Peer, "upstream": s.Unpacked.Upstream} {
		size := humanSize(n)
		if n == 0 {
			size = "–"
		}
		if !regexp.MustCompile(`(?m)^` + source + ` +` + regexp.QuoteMeta(size) + ` `).MatchString(text) {
			wrong = append(wrong, fmt.Sprintf("status: no line that says %s %s:\n%s", source, size, text))
		}
	}
	var peers []admin.Peer
	if err := json.Unmarshal([]byte(run("peers", "--json")), &peers); err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		_, row, ok := strings.Cut(page, `<tr data-key="`+html.EscapeString(p.ID)+`">`)
		row, _, _ = strings.Cut(row, "</tr>")
		if want := fmt.Sprintf(`<td class="n"><data value="%d">%s</data></td><td class="n"><data value="%d">%s</data></td>`, p.ReceivedBytes, humanSize(p.ReceivedBytes), p.SentBytes, humanSize(p.SentBytes)); !ok || !strings.Contains(row, want) {
			wrong = append(wrong, fmt.Sprintf("peer %s: the page has %q, `peers` %s", p.ID, row, want))
		}
	}
	if len(peers) != s.Peers {
		wrong = append(wrong, fmt.Sprintf("%d peers are printed, %d counted", len(peers), s.Peers))
	}
	return wrong
}
