package admin

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"
)

// pageFiles are the page and what it loads. It needs nothing from anywhere else.
//
//go:embed status.html status.css status.js icon.svg
var pageFiles embed.FS

// page is what status.html is filled with.
type page struct {
	Status
	Now     time.Time
	Site    []Peer // those with the most bytes first
	Sources []shareOfBytes
	Charts  []chart
	Asked   []asked
	Lookup  lookup
}

// shareOfBytes is a line of the legend and a part of the bar.
type shareOfBytes struct {
	Class, Name string
	Bytes       int64
	Percent     string
	Left, Width string
}

// asked is a line of the table of narinfo requests.
type asked struct {
	Source, Name string
	Results
}

// lookup is the question in the look-up box and its answer.
type lookup struct {
	Asked   string
	Mistake string // why the question is none
	Verdict string
	Why     *Why
}

// maxAsked bounds the question: a store path has at most 255 characters, one inside it more.
const maxAsked = 1024

func parsePage() (*template.Template, error) {
	funcs := template.FuncMap{
		"bytes": FormatBytes, "count": formatCount[int64], "counted": formatCount[int], "duration": FormatDuration, "ms": FormatMS, "clock": FormatClock,
		"pathName": pathName, "pathHash": pathHash, "tail": ShortID, "host": host, "join": strings.Join, "source": sourceName, "plural": plural,
		"rfc3339": func(t time.Time) string { return t.Format(time.RFC3339) },
	}
	return template.New("status.html").Funcs(funcs).ParseFS(pageFiles, "status.html")
}

// handlePage adds the page and its files.
func (h *Handler) handlePage() error {
	var err error
	if h.page, err = parsePage(); err != nil {
		return err
	}
	h.mux.HandleFunc("GET /{$}", h.status)
	files := http.FileServerFS(pageFiles)
	for _, name := range []string{"status.css", "status.js", "icon.svg"} {
		h.mux.Handle("GET /"+name, files)
	}
	return nil
}

// status writes the page. It is made whole first, so that a mistake in it shows as one.
func (h *Handler) status(w http.ResponseWriter, r *http.Request) {
	p := page{Status: h.Status(), Now: time.Now(), Site: bySize(h.cfg.Node.Peers()), Charts: charts(h.cfg.Node.History())}
	p.Sources = shares(p.Unpacked)
	for _, source := range []string{"memory", "disk", "store", "peer", "upstream", "none"} {
		p.Asked = append(p.Asked, asked{source, sourceName(source), p.Requests[source]})
	}
	if path := strings.TrimSpace(r.URL.Query().Get("path")); path != "" {
		p.Lookup = h.lookUp(r.Context(), path)
	}
	var b bytes.Buffer
	if err := h.page.Execute(&b, p); err != nil {
		h.cfg.Log.Error("status page", "err", err)
		text(w, http.StatusInternalServerError, "the page cannot be made")
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes())
}

// PeerLabel is how people know a peer by its ID.
func (p page) PeerLabel(id string) string {
	for _, x := range p.Site {
		if x.ID == id {
			return x.Label()
		}
	}
	return ShortID(id)
}

// sourceName is how people know a source.
func sourceName(source string) string {
	if name, ok := map[string]string{
		"memory": "memory", "disk": "memory on disk", "store": "own store", "cache": "NAR cache", "peer": "peers", "upstream": "upstream", "none": "no source",
	}[source]; ok {
		return name
	}
	return source
}

// bySize sorts peers so that they seldom change places.
func bySize(peers []Peer) []Peer {
	peers = slices.Clone(peers)
	slices.SortFunc(peers, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(b.SentBytes+b.ReceivedBytes, a.SentBytes+a.ReceivedBytes), cmp.Compare(a.ID, b.ID))
	})
	return peers
}

// shares says how much came from where: of the NARs unpacked, since sources send them packed and
// unpacked.
func shares(b Bytes) (out []shareOfBytes) {
	whole, left := float64(max(b.sum(), 1)), 0.0
	for _, s := range sources {
		n := s.of(b)
		width := float64(n) / whole * 100
		out = append(out, shareOfBytes{Class: s.Class, Name: s.Name, Bytes: n, Percent: shareText(n, b.sum()), Left: percent(left), Width: percent(width)})
		left += width
	}
	return out
}

// shareText writes n of whole without calling something nothing or a part the whole.
func shareText(n, whole int64) string {
	switch {
	case n == 0:
		return "0 %"
	case n*100 < whole:
		return "< 1 %"
	case n < whole && (whole-n)*100 < whole:
		return "> 99 %"
	}
	return formatCount(int((float64(n)/float64(whole))*100+.5)) + " %"
}

// lookUp asks every source for what a person typed.
func (h *Handler) lookUp(ctx context.Context, asked string) lookup {
	l := lookup{Asked: asked}
	if len(asked) > maxAsked {
		l.Asked, l.Mistake = strings.ToValidUTF8(asked[:maxAsked], ""), "it is too long"
		return l
	}
	hash, err := ParseAsked(asked)
	if err != nil {
		l.Mistake = err.Error()
		return l
	}
	ctx, cancel := context.WithTimeout(ctx, whyTime)
	defer cancel()
	l.Why = &Why{StoreHash: hash.String(), Answers: h.cfg.Node.Why(ctx, hash)}
	l.Verdict = verdict(l.Why.Answers)
	return l
}

// verdict says what the answers come to: bytes are taken from the cheapest source that has them.
func verdict(answers []Answer) string {
	for _, s := range []struct{ source, text string }{
		{"store", "It is in this machine’s own store and would come from there."},
		{"cache", "It would come from the NAR cache of this machine."},
		{"peer", "It would come from a peer."},
		{"upstream", "It would come from an upstream."},
	} {
		if slices.ContainsFunc(answers, func(a Answer) bool { return a.Source == s.source && a.Result == Has }) {
			return s.text
		}
	}
	for _, a := range answers {
		if a.Result == Unavailable || a.Result == Invalid {
			return "No source that could be asked has it, but not all could."
		}
	}
	return "No source has it."
}
